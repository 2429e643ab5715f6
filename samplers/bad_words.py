"""Bad words: forbidden token sequences, of which the last token is masked wherever the others have just occurred."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samplers.contract import Admission, Rows, SamplerError, Shape, State
from samplers.registry import STAGES
from samplers.stage import BaseStage, token_ids

Ids = npt.NDArray[np.int64]
MAX_WORDS = 512  # 256 strings, each bare and behind a space
_NONE = -1  # stands in a history for a token that is not there


@STAGES.register
class BadWords(BaseStage):
    """Masks the last token of each forbidden sequence whenever the tokens before it end prompt and output."""

    name = "bad_words_ids"
    order = 2.1
    structured = ("bad_words_ids",)
    in_greedy = True

    def parse(self, field: str, value: Any, path: str, vocab: int) -> tuple[tuple[int, ...], ...]:
        if not isinstance(value, (list, tuple)):
            raise SamplerError(f"'{path}' must be a list of lists of token ids", path)
        if len(value) > MAX_WORDS:
            raise SamplerError(f"'{path}' has more than {MAX_WORDS} words", path)
        words = tuple(token_ids(word, f"{path}[{i}]", vocab) for i, word in enumerate(value))
        if any(not word for word in words):
            raise SamplerError(f"'{path}' must not hold an empty word", path)
        return words

    def new_state(self, shape: Shape) -> State:
        return _Histories(shape)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _Histories)
        at, tokens = (torch.from_numpy(x).to(logits.device) for x in state.forbidden(rows.slots.cpu().numpy()))
        out = logits.clone()
        out[at, tokens] = logits[at, tokens] - torch.inf
        return out


@dataclass(frozen=True)
class _Words:
    """Words of one length, of all slots. Those of slot s are entries [first[s], first[s] + count[s])."""

    before: Ids  # [N, length - 1]
    last: Ids  # [N]
    first: Ids  # [slots]
    count: Ids  # [slots]

    def matches(self, slots: Ids, tails: Ids) -> tuple[Ids, Ids]:
        """(row, forbidden token) pairs. slots: [R]; tails: [slots, T], T >= length - 1."""
        count = self.count[slots]
        rows = np.repeat(np.arange(len(slots)), count)
        entries = np.arange(len(rows)) + np.repeat(self.first[slots] - count.cumsum() + count, count)
        size = self.before.shape[1]
        if size:
            hit = (self.before[entries] == tails[slots[rows], -size:]).all(1)
            rows, entries = rows[hit], entries[hit]
        return rows, self.last[entries]


class _Histories:
    """Every slot's words, and tails [slots, T] of its last tokens, T long enough to match the longest word."""

    def __init__(self, shape: Shape) -> None:
        self._slots = shape.slots
        self._words: dict[int, tuple[tuple[int, ...], ...]] = {}
        self._tails: Ids = np.full((shape.slots, 0), _NONE)
        self._by_length: list[_Words] | None = []  # None: `_words` has changed since

    def admit(self, slot: int, admission: Admission) -> None:
        self._words[slot] = admission.values["bad_words_ids"]
        self._by_length = None
        longest = max(len(word) for words in self._words.values() for word in words)
        self._tails = _right_aligned(self._tails, longest - 1)
        history = np.array([*admission.prompt_ids, *admission.output_ids][-longest:], np.int64)
        self._tails[slot] = _right_aligned(history[None], longest - 1)

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        if self._tails.shape[1]:
            mine = slots.cpu().numpy()
            self._tails[mine] = np.column_stack([self._tails[mine, 1:], tokens.cpu().numpy()])

    def snapshot(self, slot: int) -> Any:
        return self._tails[slot].copy()

    def restore(self, slot: int, snapshot: Any) -> None:
        self._tails[slot] = _right_aligned(snapshot[None], self._tails.shape[1])

    def fork(self, parent: int, child: int) -> None:
        self._words[child] = self._words[parent]
        self._tails[child] = self._tails[parent]
        self._by_length = None

    def free(self, slot: int) -> None:
        self._words.pop(slot, None)
        self._by_length = None

    def forbidden(self, slots: Ids) -> tuple[Ids, Ids]:
        """(row, token) pairs to mask. slots: [R]."""
        if self._by_length is None:
            self._by_length = self._sorted_words()
        found = [words.matches(slots, self._tails) for words in self._by_length]
        return np.concatenate([rows for rows, _ in found]), np.concatenate([tokens for _, tokens in found])

    def _sorted_words(self) -> list[_Words]:
        """The words of all slots by length; only when a slot was taken or freed."""
        grouped: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        for slot in sorted(self._words):
            for word in self._words[slot]:
                grouped.setdefault(len(word), []).append((slot, word))
        result = []
        for entries in grouped.values():
            count = np.bincount([slot for slot, _ in entries], minlength=self._slots)
            words = np.array([word for _, word in entries], np.int64)
            result.append(_Words(words[:, :-1], words[:, -1], count.cumsum() - count, count))
        return result


def _right_aligned(rows: Ids, length: int) -> Ids:
    """The last `length` columns; missing ones are filled with nothing from the left."""
    missing = length - rows.shape[1]
    if missing <= 0:
        return rows[:, rows.shape[1] - length :].copy()
    return np.pad(rows, ((0, 0), (missing, 0)), constant_values=_NONE)
