"""Every registered stage and draw, whoever registered it, through the conformance suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samplers.contract import Param, Rows
from samplers.registry import DRAWS, STAGES
from samplers.stage import BaseDraw, BaseStage
from samplers.testing import Failed, conformance

# Values where the ranges of scalar parameters do not say enough. Functions of the ids name tokens.
VALUES: dict[str, list[Any]] = {
    "allowed_token_ids": [
        lambda ids: {"allowed_token_ids": [ids[0], ids[-1], ids[5 % len(ids)]]},
        lambda ids: {"allowed_token_ids": [ids[1]]},
    ],
    "bad_words_ids": [
        lambda ids: {"bad_words_ids": [[ids[1]], [ids[0], ids[-1]], [ids[0], ids[1], ids[0]]]},
        lambda ids: {"bad_words_ids": [[ids[i % len(ids)], ids[0]] for i in range(30)]},
    ],
    "logit_bias": [
        lambda ids: {"logit_bias": {str(ids[0]): 5, str(ids[-1]): -100}},
        lambda ids: {"logit_bias": {str(ids[i]): i / 8 - 1.5 for i in range(min(len(ids), 40))}},
    ],
    "rpg": [
        {"rpg": {"language": "python", "lambda": 0.5, "top": 8}},
        {"rpg": {"language": "python", "lambda": 0.1, "max_period": 4, "penalise": "all"}},
    ],
}
_HARD = "a hard mask; a row that it empties ends the choice with an error"
_ROWS = "steers by the probabilities of drawn tokens, and nobody keeps the rows of an earlier life"
EXCEPTIONS: dict[str, dict[str, str]] = {
    "allowed_token_ids": {"keeps_one": _HARD},
    "bad_words_ids": {"keeps_one": _HARD},
    "min_tokens": {"keeps_one": _HARD},
    "no_repeat_ngram": {"keeps_one": _HARD},
    "repetition_penalty": {"shift": "divides logits, so their zero point matters"},
    "mirostat": {"resume": _ROWS},
    "adaptive_p": {"resume": _ROWS},
    "reuse_cap": {"resume": _ROWS},
    "arithmetic": {
        "resume": "how much of its code is used up depends on the rows of an earlier life",
        "tree": "follows chains of drafts, not trees",
    },
}


@pytest.mark.parametrize("name", [item.name for registry in (STAGES, DRAWS) for item in registry])
def test_registered(name: str) -> None:
    ran = conformance(name, VALUES.get(name), exceptions=EXCEPTIONS.get(name))
    assert {"pure", "masked", "batch", "prefixes"} <= set(ran)


def test_tables_name_only_what_exists() -> None:
    """An exception for a sampler that passes is one too many."""
    for name, reasons in EXCEPTIONS.items():
        if name in STAGES or name in DRAWS:
            for check in reasons:
                rest = {other: reason for other, reason in reasons.items() if other != check}
                with pytest.raises(Failed) as caught:
                    conformance(name, VALUES.get(name), exceptions=rest, vocabularies=(3, 17))
                assert check in caught.value.checks


# --- the suite finds what it is there to find


class Good(BaseStage):
    """Keeps the most probable tokens; what others do wrong is added to it."""

    name, order, params = "suspect", 12.8, (Param("suspect", float, 0.0, low=0.0, high=1.0, default=0.5),)

    def shape(self, logits: torch.Tensor, params: Any, rows: Rows, state: Any) -> torch.Tensor:
        return logits.masked_fill(
            logits < logits.amax(1, keepdim=True) - 1 / params["suspect"].unsqueeze(1), -torch.inf
        )


class Spoils(Good):
    def shape(self, logits: torch.Tensor, params: Any, rows: Rows, state: Any) -> torch.Tensor:
        return logits.sub_(1.0)


class SpoilsParameters(Good):
    def shape(self, logits: torch.Tensor, params: Any, rows: Rows, state: Any) -> torch.Tensor:
        return super().shape(logits, {"suspect": params["suspect"].mul_(0.5)}, rows, state)


class Empties(Good):
    def shape(self, logits: torch.Tensor, params: Any, rows: Rows, state: Any) -> torch.Tensor:
        return logits.masked_fill(logits.softmax(1) < 0.6, -torch.inf)


class Revives(Good):
    def shape(self, logits: torch.Tensor, params: Any, rows: Rows, state: Any) -> torch.Tensor:
        return logits.clamp(min=-50.0)


class CutsTies(Good):
    def shape(self, logits: torch.Tensor, params: Any, rows: Rows, state: Any) -> torch.Tensor:
        out = torch.full_like(logits, -torch.inf)
        top = logits.topk(1)
        return out.scatter(1, top.indices, top.values)


class CountsMasked(Good):
    def shape(self, logits: torch.Tensor, params: Any, rows: Rows, state: Any) -> torch.Tensor:
        return super().shape(logits, {"suspect": params["suspect"] / logits.shape[1]}, rows, state)


class SeesZero(Good):
    def shape(self, logits: torch.Tensor, params: Any, rows: Rows, state: Any) -> torch.Tensor:
        return logits * 1.5 + logits.abs()


class SeesNeighbours(Good):
    def shape(self, logits: torch.Tensor, params: Any, rows: Rows, state: Any) -> torch.Tensor:
        return logits + len(logits) % 2 * (logits == logits.amax(1, keepdim=True))


class NeverOff(Good):
    params = (Param("suspect", float, 0.0, low=0.0, high=1.0, default=0.5), Param("deaf", bool, False))

    def is_neutral(self, values: Any) -> bool:
        return False


class Counter:
    """Adds to each slot's last token a bonus of how many tokens there were; `forgets` names what it gets wrong."""

    def __init__(self, slots: int, forgets: str) -> None:
        self.last, self.count, self.forgets = [0] * slots, [0] * slots, forgets

    def admit(self, slot: int, admission: Any) -> None:
        if self.forgets != "slots":
            self.last[slot], self.count[slot] = 0, 0
        for token in () if self.forgets == "resume" else admission.output_ids:
            self.last[slot], self.count[slot] = token, self.count[slot] + 1

    def accept(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
            self.last[slot], self.count[slot] = token, self.count[slot] + 1

    def snapshot(self, slot: int) -> Any:
        return self.last[slot], self.count[slot]

    def restore(self, slot: int, snapshot: Any) -> None:
        self.last[slot] = snapshot[0]
        if self.forgets != "prefixes":
            self.count[slot] = snapshot[1]

    def fork(self, parent: int, child: int) -> None:
        self.last[child] = self.last[parent]
        if self.forgets != "fork":
            self.count[child] = self.count[parent]

    def free(self, slot: int) -> None: ...


def remembers(forgets: str) -> type[BaseStage]:
    class Remembers(Good):
        def new_state(self, shape: Any) -> Any:
            return Counter(shape.slots, forgets)

        def shape(self, logits: torch.Tensor, params: Any, rows: Rows, state: Any) -> torch.Tensor:
            last = torch.tensor([state.last[slot] for slot in rows.slots.tolist()])
            count = torch.tensor([float(state.count[slot]) for slot in rows.slots.tolist()])
            bonus = torch.zeros_like(logits).scatter(1, last.unsqueeze(1), count.unsqueeze(1))
            return logits + bonus * (count > 0).unsqueeze(1)

    return Remembers


@pytest.mark.parametrize(
    ("suspect", "check"),
    [
        (Spoils, "pure"),
        (SpoilsParameters, "pure"),
        (Empties, "keeps_one"),
        (Revives, "masked"),
        (CutsTies, "renamed"),
        (CountsMasked, "appended"),
        (SeesZero, "shift"),
        (SeesNeighbours, "batch"),
        (NeverOff, "neutral"),
        *((remembers(what), what) for what in ("slots", "prefixes", "fork", "resume")),
    ],
)
def test_it_finds(suspect: type[BaseStage], check: str) -> None:
    STAGES.register(suspect)
    try:
        with pytest.raises(Failed, match=check) as caught:
            conformance("suspect", [{"suspect": 0.5}, {"suspect": 0.1}], vocabularies=(3, 17))
        assert check in caught.value.checks
    finally:
        del STAGES._items["suspect"]


@pytest.mark.parametrize("suspect", [Good, remembers("nothing")])
def test_it_finds_nothing_where_nothing_is(suspect: type[BaseStage]) -> None:
    STAGES.register(suspect)
    try:
        conformance("suspect", vocabularies=(3, 17))
        with pytest.raises(Failed, match="reference"):
            conformance("suspect", vocabularies=(17,), reference=lambda row, *_: row + 1)
        with pytest.raises(ValueError, match="no checks: speed"):
            conformance("suspect", exceptions={"speed": "it is slow"})
    finally:
        del STAGES._items["suspect"]


class BiasedDraw(BaseDraw):
    name = "suspect_draw"

    def pick(self, logits: torch.Tensor, params: Any, rows: Rows, state: Any) -> torch.Tensor:
        return DRAWS.get("iid").pick(logits * 1.2, params, rows, state)


class FixedDraw(BaseDraw):
    name = "suspect_draw"

    def pick(self, logits: torch.Tensor, params: Any, rows: Rows, state: Any) -> torch.Tensor:
        return logits.argmax(1)


class LooseDraw(BaseDraw):
    name = "suspect_draw"

    def pick(self, logits: torch.Tensor, params: Any, rows: Rows, state: Any) -> torch.Tensor:
        return DRAWS.get("iid").pick(logits.clamp(min=-3), params, rows, state)


@pytest.mark.parametrize(("suspect", "check"), [(BiasedDraw, "law"), (FixedDraw, "seeded"), (LooseDraw, "masked")])
def test_it_finds_in_draws(suspect: type[BaseDraw], check: str) -> None:
    DRAWS.register(suspect)
    try:
        with pytest.raises(Failed) as caught:
            conformance("suspect_draw", vocabularies=(3, 17))
        assert check in caught.value.checks
    finally:
        del DRAWS._items["suspect_draw"]
