"""Suffix drafts: what has followed endings of the text most often, in the request itself and, if it asks for that, in
its tenant's past outputs (SuffixDecoding, Oliaro et al., arXiv 2411.04975; spec_decode.md 6.5)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import ClassVar

from samplers.contract import Param
from spec_decode.contract import DRAFT_SOURCES, DraftAdmission, DraftPlan, DraftTree
from spec_decode.drafters.automaton import SuffixAutomaton
from spec_decode.drafters.growth import Growth
from spec_decode.drafters.per_request import PerRequest
from spec_decode.drafters.source import BaseSource
from spec_decode.drafters.tenants import TenantLimits, Tenants


@DRAFT_SOURCES.register
class Suffix(BaseSource):
    """A match of m tokens allows floor(m * `factor` + `offset`) drafts, each with a share of at least `min_prob` of
    the texts that reached the match."""

    name = "suffix"
    branches = True
    ranks = True
    field = "suffix"
    params: ClassVar[tuple[Param, ...]] = (
        Param("scope", str, "request", choices=("request", "tenant")),
        Param("factor", float, 1.0, low=0.1, high=8),
        Param("offset", int, 0, low=-4, high=16),
        Param("min_prob", float, 0.1, low=0, high=1),
        Param("max_depth", int, 24, low=4, high=128),
    )

    def new_drafter(self, tenants: Tenants | None = None, clock: Callable[[], float] = time.monotonic) -> PerRequest:
        """tenants: without them every admission's tenant must be None."""
        tenants = Tenants(TenantLimits()) if tenants is None else tenants
        return PerRequest(lambda admission: SuffixDrafts(admission, tenants, clock))


class SuffixDrafts:
    """One request's drafts."""

    def __init__(self, admission: DraftAdmission, tenants: Tenants, clock: Callable[[], float]) -> None:
        options = admission.options
        self._growth = Growth(options["factor"], options["offset"], options["min_prob"], admission.ending_ids)
        self._depth = options["max_depth"]
        self._own = SuffixAutomaton(self._depth)
        self._tokens: list[int] = []
        self._prompt_length = admission.prompt_length
        self._tenant = admission.tenant if options["scope"] == "tenant" else None
        self._tenants, self._clock = tenants, clock
        self.remembers = self._tenant is not None

    def commit(self, tokens: Sequence[int]) -> None:
        self._tokens += tokens
        for token in tokens:
            self._own.append(token)

    def propose(self, plan: DraftPlan) -> DraftTree:
        """The better of the two; of equal ones the longer match's, then the request's own."""
        best = self._growth.best(self._own.matches(), self._own.continuations, plan)
        past = None if self._tenant is None else self._tenants.past(self._tenant, self._clock())
        if past is not None:
            matches = past.matches(self._tokens[1 - self._depth :])
            other = self._growth.best(matches, past.continuations, plan)
            best = max(best, other, key=lambda grown: (grown.score, grown.matched))
        return DraftTree.one_hot(best.tokens, best.parents, best.matched)

    def copy(self) -> SuffixDrafts:
        twin = copy(self)
        twin._own, twin._tokens = self._own.copy(), self._tokens.copy()
        return twin

    def keep(self) -> None:
        if self._tenant is not None:
            self._tenants.add(self._tenant, self._tokens[self._prompt_length :], self._clock())
