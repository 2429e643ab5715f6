"""RPG: tokens that would begin another copy of a statement pattern lose logit (Dong et al., arXiv 2505.10402).

The text, prompt included, is read as statement-level symbols of its language. Where it ends in c copies of a pattern
behind the pattern itself, each of the most probable tokens that would begin the pattern once more gets c ln(lambda)
added to its logit. There is no public code; what the paper leaves open is decided in samplers.md 12.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.contract import Admission, Param, Rows, SamplerError, Shape, State
from samplers.model_facts import ModelFacts
from samplers.registry import STAGES
from samplers.rpg.grammar import BREAK, GRAMMARS, Grammar, Symbol
from samplers.rpg.runs import Runs
from samplers.stage import BaseStage

OPTIONS = (
    Param("lambda", float, 1.0, low=0.0, high=1.0, low_open=True, default=0.9),
    Param("max_period", int, 64, low=1, high=1024),
    Param("top", int, 20, low=1, high=256),
    Param("penalise", str, "start", choices=("start", "all")),
)
LANGUAGE = "python"
DEFAULTS: dict[str, Any] = {"language": LANGUAGE, **{option.name: option.when_named for option in OPTIONS}}


@STAGES.register
class Rpg(BaseStage):
    """Host work for the rows that use it: reads each accepted token, and up to `top` candidates while a pattern is
    complete (`penalise` "all": also inside of a pattern)."""

    name = "rpg"
    order = 7
    structured = ("rpg",)
    structured_defaults = MappingProxyType({"rpg": DEFAULTS})
    in_greedy = True  # the paper decodes greedily

    def parse(self, field: str, value: Any, path: str, vocab: int) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise SamplerError(f"'{path}' must be an object such as {{'language': '{LANGUAGE}'}}", path)
        names = ("language", *(option.name for option in OPTIONS))
        for key in value:
            if key not in names:
                where = f"{path}.{key}"
                raise SamplerError(f"'{where}' does not exist; known: {', '.join(names)}", where)
        given = {key: one for key, one in value.items() if one is not None}
        parsed: dict[str, Any] = {"language": GRAMMARS.get(given.get("language", LANGUAGE), f"{path}.language").name}
        for option in OPTIONS:
            parsed[option.name] = option.check(given.get(option.name, option.when_named), f"{path}.{option.name}")
        return parsed

    def check(self, values: Mapping[str, Any], model: ModelFacts) -> None:
        if model.pieces is None:
            raise SamplerError("'rpg' cannot be used here: the text of this model's tokens is not known", "rpg")

    def is_neutral(self, values: Mapping[str, Any]) -> bool:
        return "rpg" not in values or bool(values["rpg"]["lambda"] == 1)

    def new_state(self, shape: Shape) -> State:
        return Readers(shape)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, Readers)
        readers = [state.of(slot) for slot in rows.slots.tolist()]
        active = [(row, one, outlook) for row, one in enumerate(readers) if (outlook := one.outlook()) is not None]
        if not active:
            return logits
        index = torch.tensor([row for row, _, _ in active], device=logits.device)
        candidates = _highest(logits[index], [reader.top for _, reader, _ in active])
        entries = [
            (row, token, penalty)
            for (row, reader, outlook), tokens in zip(active, candidates, strict=True)
            for token in tokens
            if (penalty := reader.penalty(outlook, state.piece[token])) < 0
        ]
        if not entries:
            return logits
        at, ids, penalties = (torch.tensor(column, device=logits.device) for column in zip(*entries, strict=True))
        out = logits.clone()
        out[at, ids] += penalties
        return out


class Target(NamedTuple):
    """A candidate that begins `symbol` gets the penalty, which is negative, added to its logit."""

    symbol: Symbol
    penalty: float


class Outlook(NamedTuple):
    """The symbols of what is unsettled at the end of the text, and the target behind each number of them."""

    before: list[Symbol]
    targets: list[Target | None]  # one more than `before`


class Reader(NamedTuple):
    """What one slot's text has come to. Never changed, so a snapshot is a reference to it."""

    grammar: Grammar
    state: Any  # of the grammar
    runs: Runs
    log_lambda: float
    top: int
    everywhere: bool  # penalises every symbol of the pattern

    @staticmethod
    def new(options: Mapping[str, Any]) -> Reader:
        grammar = GRAMMARS.get(options["language"], "rpg.language")
        runs = Runs.empty(options["max_period"])
        everywhere = options["penalise"] == "all"
        return Reader(grammar, grammar.start(), runs, math.log(options["lambda"]), options["top"], everywhere)

    def read(self, text: bytes) -> Reader:
        state, symbols = self.grammar.feed(self.state, text)
        runs = self.runs
        for symbol in symbols:
            runs = runs.then(symbol)
        return self._replace(state=state, runs=runs)

    def restarted(self) -> Reader:
        return self._replace(state=self.grammar.start(), runs=Runs.empty(len(self.runs.lengths)))

    def outlook(self) -> Outlook | None:
        """What is punished now; None: nothing."""
        before = self._unmerged(self.grammar.close(self.state))
        runs, targets = self.runs, [self._target(self.runs)]
        for symbol in before:
            runs = runs.then(symbol)
            targets.append(self._target(runs))
        return Outlook(before, targets) if any(targets) else None

    def penalty(self, outlook: Outlook, text: bytes) -> float:
        """Of a token with this text. What only prolongs an unfinished word begins nothing; what turns it into another
        one, as `ert` behind `ass`, begins that."""
        state, settled = self.grammar.feed(self.state, text)
        after = self._unmerged([*settled, *self.grammar.close(state)])
        same = 0
        while same < min(len(after), len(outlook.before)) and after[same] == outlook.before[same]:
            same += 1
        target = outlook.targets[same]
        return target.penalty if target is not None and after[same : same + 1] == [target.symbol] else 0.0

    def _target(self, runs: Runs) -> Target | None:
        repetition = runs.repetition()
        if repetition is None or not (repetition.complete or self.everywhere) or not self.log_lambda:
            return None
        return Target(repetition.following, repetition.copies * self.log_lambda)

    def _unmerged(self, symbols: Sequence[Symbol]) -> list[Symbol]:
        """Those that do not merge with their neighbours."""
        last = self.runs.recent[0] if self.runs.recent else BREAK
        return [one for one, before in zip(symbols, (last, *symbols), strict=False) if one is BREAK or one != before]


class Pieces:
    """The bytes of each token; none where a token is no text."""

    def __init__(self, model: ModelFacts) -> None:
        self._pieces = model.pieces or ()
        self.special_ids = model.special_ids

    def __getitem__(self, token: int) -> bytes:
        return b"" if token in self.special_ids or token >= len(self._pieces) else self._pieces[token]


class Readers:
    """The reader of each slot. A control token, such as those around a chat's messages, begins a new text."""

    def __init__(self, shape: Shape) -> None:
        self.piece = Pieces(shape.model)
        self._readers: dict[int, Reader] = {}

    def of(self, slot: int) -> Reader:
        return self._readers[slot]

    def admit(self, slot: int, admission: Admission) -> None:
        ids = [*admission.prompt_ids, *admission.output_ids]
        special = self.piece.special_ids
        begin = next((at + 1 for at in reversed(range(len(ids))) if ids[at] in special), 0)
        text = b"".join([self.piece[token] for token in ids[begin:]])
        self._readers[slot] = Reader.new(admission.values["rpg"]).read(text)

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
            reader = self._readers[slot]
            special = token in self.piece.special_ids
            self._readers[slot] = reader.restarted() if special else reader.read(self.piece[token])

    def snapshot(self, slot: int) -> Reader:
        return self._readers[slot]

    def restore(self, slot: int, snapshot: Reader) -> None:
        self._readers[slot] = snapshot

    def fork(self, parent: int, child: int) -> None:
        self._readers[child] = self._readers[parent]

    def free(self, slot: int) -> None:
        self._readers.pop(slot, None)


def _highest(logits: Tensor, counts: Sequence[int]) -> list[list[int]]:
    """Each row's tokens that belong to its `count` highest whoever wins ties, and are not masked. logits: [R, V]."""
    highest = logits.topk(min(max(counts) + 1, logits.shape[1]), 1)
    rows = zip(counts, highest.values.tolist(), highest.indices.tolist(), strict=True)
    found = []
    for count, values, tokens in rows:
        bound = values[count] if count < len(values) else -math.inf
        found.append([token for token, value in zip(tokens, values, strict=True) if value > bound])
    return found
