"""DRY: a token that would prolong a repetition loses more the longer the repetition is (by p-e-w; samplers.md 12.3).

L(v) is the length of the longest end of the text that has already been followed by v. For L(v) >= allowed_length the
logit of v loses multiplier * base ** (L(v) - allowed_length).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.breakers import LONGEST_BYTES, TAIL, Breakers, Pieces
from samplers.contract import Admission, Param, Rows, SamplerError, Shape, State
from samplers.histories import Ids, Repeats, host
from samplers.model_facts import ModelFacts
from samplers.registry import STAGES
from samplers.stage import BaseStage

DEFAULT_BREAKERS = ("\n", ":", '"', "*")
MAX_BREAKERS = 128
_STRONGEST = 1e30  # larger penalties would overflow when a low temperature divides them
_NEVER = np.iinfo(np.int32).max
_NOBODY = -3  # fills the lists of ending ids; no id is negative


@STAGES.register
class Dry(BaseStage):
    """A breaker ends a repetition and is never penalised; neither are special tokens and what ends the text."""

    name = "dry"
    order = 6
    params = (
        Param("dry_multiplier", float, 0.0, low=0.0, high=_STRONGEST, default=0.8),
        Param("dry_base", float, 1.75, low=1.0, high=_STRONGEST),
        Param("dry_allowed_length", int, 2, low=1, high=2**31 - 1),
        Param("dry_penalty_last_n", int, -1, low=-1, high=2**31 - 1),
        Param("dry_scope", str, "output", choices=("output", "all")),
    )
    structured = ("dry_sequence_breakers",)
    structured_defaults = MappingProxyType({"dry_sequence_breakers": DEFAULT_BREAKERS})
    in_greedy = True

    def parse(self, field: str, value: Any, path: str, vocab: int) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)):
            raise SamplerError(f"'{path}' must be a list of strings", path)
        if len(value) > MAX_BREAKERS:
            raise SamplerError(f"'{path}' has more than {MAX_BREAKERS} entries", path)
        for i, text in enumerate(value):
            where = f"{path}[{i}]"
            if not isinstance(text, str) or not text:
                raise SamplerError(f"'{where}' must be a string that is not empty", where)
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise SamplerError(f"'{where}' contains an unpaired surrogate", where)
            if len(text.encode()) > LONGEST_BYTES:
                raise SamplerError(f"'{where}' is longer than {LONGEST_BYTES} bytes", where)
        return tuple(dict.fromkeys(value))

    def check(self, values: Mapping[str, Any], model: ModelFacts) -> None:
        if _breakers(values) and model.pieces is None:
            raise SamplerError(
                "'dry_sequence_breakers' must be [] here: the text of this model's tokens is not known",
                "dry_sequence_breakers",
            )

    def is_neutral(self, values: Mapping[str, Any]) -> bool:
        return values["dry_multiplier"] == 0 or values["dry_penalty_last_n"] == 0

    def new_state(self, shape: Shape) -> State:
        return _Sequences(shape)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _Sequences)
        multiplier, base, allowed, last_n = (
            host(params[f"dry_{name}"]) for name in ("multiplier", "base", "allowed_length", "penalty_last_n")
        )
        found, tokens, lengths = state.repetitions(
            host(rows.slots), np.where(multiplier > 0, np.minimum(allowed, _NEVER), _NEVER), last_n
        )
        if not len(found):
            return logits
        with np.errstate(over="ignore"):
            growth = base[found].astype(np.float64) ** (lengths - allowed[found])
            penalty = np.minimum(multiplier[found] * growth, _STRONGEST).astype(np.float32)
        device = logits.device
        at, ids = torch.from_numpy(found).to(device), torch.from_numpy(tokens).to(device)
        out = logits.clone()
        out[at, ids] = logits[at, ids] - torch.from_numpy(penalty).to(device)
        return out


class _Sequences(Repeats):
    """Histories in which a token that ends a repetition is -1, and what is needed to see which tokens do."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self._vocab, self._model = shape.vocab, shape.model
        self._pieces: Pieces | None = None
        self._sets: list[tuple[tuple[str, ...], Breakers]] = []  # no more than slots, as those in use are shared
        self._set_of = np.zeros(shape.slots, np.int64)
        self._tails = np.full((shape.slots, TAIL), -1, np.int16)
        self._endings = np.full((shape.slots, 1), _NOBODY, np.int64)
        self._special = np.zeros(shape.vocab, bool)
        self._special[[token for token in shape.model.special_ids if 0 <= token < shape.vocab]] = True
        self._taken: set[int] = set()

    def admit(self, slot: int, admission: Admission) -> None:
        self._taken.add(slot)
        self._set_of[slot] = self._find(_breakers(admission.values), slot)
        breakers = self._sets[self._set_of[slot]][1]
        ids = [*admission.prompt_ids, *admission.output_ids]
        skipped = 0 if admission.values["dry_scope"] == "all" else len(admission.prompt_ids)
        # the text goes on from the prompt whatever the scope: a breaker may begin there
        self.write(slot, np.where(breakers.ends(ids), -1, np.array(ids, np.int64))[skipped:])
        self._tails[slot] = breakers.tail(ids)
        endings = sorted(admission.ending_ids)
        missing = len(endings) - self._endings.shape[1]
        if missing > 0:
            self._endings = np.pad(self._endings, ((0, 0), (0, missing)), constant_values=_NOBODY)
        self._endings[slot] = _NOBODY
        self._endings[slot, : len(endings)] = endings

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        mine, drawn = host(slots), host(tokens)
        kept = drawn.copy()
        sets = self._set_of[mine]
        for index in np.unique(sets):
            rows = np.flatnonzero(sets == index)
            broken, tails = self._sets[index][1].follow(self._tails[mine[rows]], drawn[rows])
            kept[rows[broken]] = -1
            self._tails[mine[rows]] = tails
        self.append(mine, kept)

    def repetitions(self, slots: Ids, least: Ids, last_n: Ids) -> tuple[Ids, Ids, Ids]:
        """(row, token, L) of every token that would prolong a repetition of at least `least` tokens; each pair of row
        and token once. slots, least, last_n: [R]."""
        rows, at = self.occurrences(slots, least)
        mine = slots[rows]
        tokens = self.ids[mine, at].astype(np.int64)
        window = np.where(last_n < 0, 0, np.maximum(self.length[slots] - last_n, 0))  # [R] its first position
        lengths = np.minimum(self.before[mine, at], at - window[rows])
        good = (lengths >= least[rows]) & (tokens >= 0) & ~self._special[tokens]
        good &= (self._endings[mine] != tokens[:, None]).all(1)
        rows, tokens, lengths = rows[good], tokens[good], lengths[good]
        order = np.lexsort((lengths, tokens, rows))
        rows, tokens, lengths = rows[order], tokens[order], lengths[order]
        longest = np.ones(len(rows), bool)
        longest[:-1] = (rows[1:] != rows[:-1]) | (tokens[1:] != tokens[:-1])
        return rows[longest], tokens[longest], lengths[longest]

    def snapshot(self, slot: int) -> Any:
        return super().snapshot(slot), self._tails[slot].copy()

    def restore(self, slot: int, snapshot: Any) -> None:
        repeats, self._tails[slot] = snapshot
        super().restore(slot, repeats)

    def fork(self, parent: int, child: int) -> None:
        super().fork(parent, child)
        self._taken.add(child)
        for array in (self._set_of, self._tails, self._endings):
            array[child] = array[parent]

    def free(self, slot: int) -> None:
        self._taken.discard(slot)

    def _find(self, texts: tuple[str, ...], slot: int) -> int:
        """Index of the set of these breakers, in place of one that no other slot uses where there is none."""
        for index, (known, _) in enumerate(self._sets):
            if known == texts:
                return index
        if self._pieces is None and texts and self._model.pieces is not None:
            self._pieces = Pieces(self._model.pieces, self._vocab)
        made = texts, Breakers(texts, self._pieces if texts else None, self._vocab)
        if len(self._sets) < len(self._set_of):
            self._sets.append(made)
            return len(self._sets) - 1
        used = {int(self._set_of[other]) for other in self._taken - {slot}}
        index = next(index for index in range(len(self._sets)) if index not in used)
        self._sets[index] = made
        return index


def _breakers(values: Mapping[str, Any]) -> tuple[str, ...]:
    breakers: tuple[str, ...] = values.get("dry_sequence_breakers", DEFAULT_BREAKERS)
    return breakers
