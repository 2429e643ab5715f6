"""Prompt lookup: where the last tokens have occurred before, copy what followed them (Saxena, prompt lookup decoding,
2023; spec_decode.md 6.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, ClassVar

from samplers.contract import Param, SamplerError
from spec_decode.contract import DRAFT_SOURCES, DraftAdmission, DraftPlan, DraftTree
from spec_decode.drafters.per_request import PerRequest
from spec_decode.drafters.source import BaseSource
from spec_decode.drafters.tenants import Tenants
from spec_decode.tree_forms import chain


@DRAFT_SOURCES.register
class PromptLookup(BaseSource):
    """The longest of the last `max` to `min` tokens that occur decides, at its latest or first occurrence."""

    name = "prompt_lookup"
    field = "ngram"
    params: ClassVar[tuple[Param, ...]] = (
        Param("min", int, 2, low=1, high=8),
        Param("max", int, 5, low=1, high=16),
        Param("pick", str, "recent", choices=("recent", "first")),
    )

    def check(self, values: Mapping[str, Any], path: str) -> None:
        if values["min"] > values["max"]:
            raise SamplerError(f"'{path}.min' must not be above '{path}.max' ({values['max']})", f"{path}.min")

    def new_drafter(self, tenants: Tenants | None = None) -> PerRequest:
        return PerRequest(LookedUp)


class LookedUp:
    """One request's drafts. Each new token costs one entry per length."""

    remembers = False

    def __init__(self, admission: DraftAdmission) -> None:
        options = admission.options
        self._lengths = range(options["max"], options["min"] - 1, -1)
        self._latest = options["pick"] == "recent"
        self._ending_ids = admission.ending_ids
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # tokens in a row -> position of what followed them

    def commit(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            position = len(self._tokens)
            for length in self._lengths:
                if length <= position:
                    stretch = tuple(self._tokens[-length:])
                    if self._latest or stretch not in self._behind:
                        self._behind[stretch] = position
            self._tokens.append(token)

    def propose(self, plan: DraftPlan) -> DraftTree:
        for length in self._lengths:
            position = self._behind.get(tuple(self._tokens[-length:]))  # shorter texts have not been followed
            if position is not None:
                return self._copied(position, min(plan.max_nodes, plan.max_depth), length)
        return DraftTree.one_hot([], [])

    def copy(self) -> LookedUp:
        twin = copy(self)
        twin._tokens, twin._behind = self._tokens.copy(), self._behind.copy()
        return twin

    def keep(self) -> None:
        pass

    def _copied(self, position: int, most: int, length: int) -> DraftTree:
        tokens = self._tokens[position : position + most]
        ends = (at + 1 for at, token in enumerate(tokens) if token in self._ending_ids)
        tokens = tokens[: next(ends, most)]
        return DraftTree.one_hot(tokens, chain(len(tokens)), length)
