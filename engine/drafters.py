"""The drafters of one engine, none of which can hurt it: one that raises is switched off, and requests go on without.

Owned by the engine thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from typing import TypeVar

from samplers.rng import Noise, Stream
from spec_decode.contract import DraftAdmission, Drafter, DraftPlan, DraftTree, LoadedSource, TreeError
from spec_decode.tree_forms import chain

log = logging.getLogger(__name__)
T = TypeVar("T")


class Drafters:
    """By the names of their sources."""

    def __init__(self, sources: Many[LoadedSource], vocab_size: int) -> None:
        self._sources: Mapping[str, LoadedSource] = {one.source.name: one for one in sources}
        self._vocab_size = vocab_size
        self._broken: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._sources)

    @property
    def broken(self) -> frozenset[str]:
        """Sources that are switched off."""
        return frozenset(self._broken)

    def works(self, source: str) -> bool:
        return source not in self._broken

    def draws(self, source: str) -> bool:
        """Whether its drafts cost something, and are made when it is known how many are wanted."""
        return self._sources[source].source.draws

    def admit(self, source: str, slot: int, admission: DraftAdmission) -> None:
        self._contained(source, lambda drafter: drafter.admit(slot, admission))

    def fork(self, source: str, parent: int, child: int, stream: Stream) -> None:
        self._contained(source, lambda drafter: drafter.fork(parent, child, stream))

    def commit(self, source: str, slot: int, tokens: Many[int]) -> None:
        self._contained(source, lambda drafter: drafter.commit(slot, tokens))

    def free(self, source: str, slot: int, keep: bool) -> None:
        self._contained(source, lambda drafter: drafter.free(slot, keep=keep))

    def propose(self, source: str, slots: Many[int], plans: Many[DraftPlan], noise: Noise) -> list[DraftTree] | None:
        """One tree per slot, that of its plan or a smaller one; None: it is switched off."""

        def proposed(drafter: Drafter) -> list[DraftTree]:
            trees = drafter.propose(slots, plans, noise)
            self._check(trees, plans)
            return trees

        return self._contained(source, proposed)

    def _contained(self, source: str, call: Callable[[Drafter], T]) -> T | None:
        if self.works(source):
            try:
                return call(self._sources[source].drafter)
            except Exception:
                log.exception("the drafts of '%s' failed and are switched off", source)
                self._broken.add(source)
        return None

    def _check(self, trees: Many[DraftTree], plans: Many[DraftPlan]) -> None:
        """Raises TreeError for what is no draft."""
        if len(trees) != len(plans):
            raise TreeError(f"{len(trees)} trees for {len(plans)} requests")
        for tree, plan in zip(trees, plans, strict=True):
            tree.check()
            if not len(tree.tokens):
                continue
            if len(tree.tokens) > plan.max_nodes or tree.depths.max() > plan.max_depth:
                raise TreeError(f"a tree of more than {plan.max_nodes} nodes or {plan.max_depth} levels")
            if plan.form == chain(len(plan.form or ())) and not tree.is_chain:
                raise TreeError("a tree where a chain was asked for")
            if not 0 <= tree.tokens.min() <= tree.tokens.max() < self._vocab_size:
                raise TreeError("a draft holds ids that are no tokens")
