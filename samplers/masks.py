"""Hard masks and the logit bias: per-request sets of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from samplers.contract import Admission, Rows, SamplerError, Shape, State
from samplers.registry import STAGES
from samplers.stage import BaseStage, token_ids

MAX_BIASES = 1024


class _PerSlot:
    """State that is written once at admission and copied by forks."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}

    def admit(self, slot: int, admission: Admission) -> None:
        raise NotImplementedError

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        """Nothing depends on the tokens."""

    def snapshot(self, slot: int) -> Any:
        return None

    def restore(self, slot: int, snapshot: Any) -> None:
        """Nothing to undo."""

    def fork(self, parent: int, child: int) -> None:
        self.values[child] = self.values[parent]

    def free(self, slot: int) -> None:
        self.values.pop(slot, None)


class _DenseRows(_PerSlot):
    """table [slots, V] fp32 of what is added to each slot's logits; allocated on first use."""

    def __init__(self, shape: Shape, build: Callable[[Tensor, Admission], None]) -> None:
        super().__init__()
        self._shape, self._build = shape, build
        self._table: Tensor | None = None

    @property
    def table(self) -> Tensor:
        if self._table is None:
            self._table = torch.zeros(self._shape.slots, self._shape.vocab, device=self._shape.device)
        return self._table

    def admit(self, slot: int, admission: Admission) -> None:
        row = self.table[slot]
        row.zero_()
        self._build(row, admission)

    def fork(self, parent: int, child: int) -> None:
        self.table[child] = self.table[parent]

    def rows(self, slots: Tensor) -> Tensor:
        """[R, V] fp32."""
        return self.table[slots]


@STAGES.register
class AllowedTokens(BaseStage):
    """Only these ids may be drawn. EOS is not added: without it generation ends by length."""

    name = "allowed_token_ids"
    order = 2
    structured = ("allowed_token_ids",)
    in_greedy = True

    def parse(self, field: str, value: Any, path: str, vocab: int) -> tuple[int, ...]:
        ids = token_ids(value, path, vocab)
        if not ids:
            raise SamplerError(f"'{path}' must not be empty", path)
        return ids

    def new_state(self, shape: Shape) -> _DenseRows:
        def build(row: Tensor, admission: Admission) -> None:
            row.fill_(-torch.inf)
            row[list(admission.values["allowed_token_ids"])] = 0

        return _DenseRows(shape, build)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _DenseRows)
        return logits + state.rows(rows.slots)


@STAGES.register
class MinTokens(BaseStage):
    """EOS and stop ids stay masked until `min_tokens` have been generated."""

    name = "min_tokens"
    order = 2.2
    in_greedy = True

    def new_state(self, shape: Shape) -> _EndingRows:
        return _EndingRows(shape)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _EndingRows)
        early = rows.positions < state.limits(rows.slots)
        return torch.where(early.unsqueeze(1), logits + state.rows(rows.slots), logits)


class _EndingRows(_DenseRows):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, self._mask)
        self._limits = torch.zeros(shape.slots, dtype=torch.int64, device=shape.device)

    @staticmethod
    def _mask(row: Tensor, admission: Admission) -> None:
        row[list(admission.ending_ids)] = -torch.inf

    def admit(self, slot: int, admission: Admission) -> None:
        super().admit(slot, admission)
        self._limits[slot] = admission.min_tokens

    def fork(self, parent: int, child: int) -> None:
        super().fork(parent, child)
        self._limits[child] = self._limits[parent]

    def limits(self, slots: Tensor) -> Tensor:
        return self._limits[slots]


@STAGES.register
class LogitBias(BaseStage):
    """Adds a constant to chosen logits; a masked token stays masked."""

    name = "logit_bias"
    order = 3
    structured = ("logit_bias",)
    in_greedy = True

    def parse(self, field: str, value: Any, path: str, vocab: int) -> dict[str, float]:
        if not isinstance(value, Mapping):
            raise SamplerError(f"'{path}' must map token ids to numbers", path)
        if len(value) > MAX_BIASES:
            raise SamplerError(f"'{path}' has more than {MAX_BIASES} entries", path)
        parsed: dict[str, float] = {}
        for key, bias in value.items():
            where = f"{path}.{key}"
            text = str(key)
            if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) >= vocab:
                raise SamplerError(f"'{where}': keys must be token ids in [0, {vocab})", where)
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or bias != bias:
                raise SamplerError(f"'{where}' must be a number", where)
            if not -100 <= bias <= 100:
                raise SamplerError(f"'{where}' must be in [-100, 100], got {bias}", where)
            parsed[str(int(text))] = float(bias)
        return parsed

    def new_state(self, shape: Shape) -> _DenseRows:
        def build(row: Tensor, admission: Admission) -> None:
            bias = admission.values["logit_bias"]
            ids = [int(token) for token in bias]
            row[ids] = torch.tensor(list(bias.values()), device=row.device)

        return _DenseRows(shape, build)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _DenseRows)
        return logits + state.rows(rows.slots)


@STAGES.register
class BadWords(BaseStage):
    """Masks the last token of each forbidden sequence whenever the tokens before it have just been generated."""

    name = "bad_words_ids"
    order = 2.1
    structured = ("bad_words_ids",)
    in_greedy = True

    def parse(self, field: str, value: Any, path: str, vocab: int) -> tuple[tuple[int, ...], ...]:
        if not isinstance(value, (list, tuple)):
            raise SamplerError(f"'{path}' must be a list of lists of token ids", path)
        words = tuple(token_ids(word, f"{path}[{i}]", vocab) for i, word in enumerate(value))
        if any(not word for word in words):
            raise SamplerError(f"'{path}' must not hold an empty word", path)
        return words

    def new_state(self, shape: Shape) -> _Histories:
        return _Histories(shape)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _Histories)
        out = logits.clone()
        for row, slot in enumerate(rows.slots.tolist()):
            out[row, state.forbidden(slot)] = -torch.inf
        return out


class _Histories(_PerSlot):
    """Words and the tail of the history long enough to match them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._tails: dict[int, tuple[int, ...]] = {}

    def admit(self, slot: int, admission: Admission) -> None:
        words: Sequence[tuple[int, ...]] = admission.values["bad_words_ids"]
        self.values[slot] = words
        history = (*admission.prompt_ids, *admission.output_ids)
        self._tails[slot] = self._cut(slot, history)

    def _cut(self, slot: int, history: tuple[int, ...]) -> tuple[int, ...]:
        longest = max(len(word) for word in self.values[slot]) - 1
        return history[len(history) - longest :] if longest else ()

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
            self._tails[slot] = self._cut(slot, (*self._tails[slot], token))

    def snapshot(self, slot: int) -> Any:
        return self._tails[slot]

    def restore(self, slot: int, snapshot: Any) -> None:
        self._tails[slot] = snapshot

    def fork(self, parent: int, child: int) -> None:
        super().fork(parent, child)
        self._tails[child] = self._tails[parent]

    def free(self, slot: int) -> None:
        super().free(slot)
        self._tails.pop(slot, None)

    def forbidden(self, slot: int) -> list[int]:
        tail = self._tails[slot]
        return [word[-1] for word in self.values[slot] if len(word) == 1 or tail[-(len(word) - 1) :] == word[:-1]]
