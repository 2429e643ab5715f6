"""What is true of every decoding program, one check each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from samplers.contract import SamplerError
from samplers.programs.branch import DEAD_END
from samplers.programs.contract import ProgramError, Setting
from samplers.testing.program_trial import END, Case, Trial, law
from samplers.testing.program_world import Choice, Outcome

_MASKED = frozenset({1, 2, 6})  # ids that stages forbid
_SHORT, _LONG = 8, 48  # tokens of the texts by which it is seen whether branches are let go
_ODD: tuple[Any, ...] = (True, -1, 0.5, 10**400, math.nan, "", "\ud800", "no such thing", [], [None], {}, {"": 1})


def _choices(trial: Trial) -> None:
    """It comes to an end; choices are numbered in order and each has ended as the request says."""
    outcomes = [(case, trial.decode(case)) for case in trial.cases()]
    assert any(outcome and outcome.choices for _, outcome in outcomes), "no request gets an answer"
    for case, outcome in outcomes:
        if outcome is not None:
            assert outcome.choices, "neither a choice nor a ProgramError"
            _hold(outcome, case)


def _hold(outcome: Outcome, case: Case, emptied: bool = False) -> None:
    numbers = sorted(outcome.choices)
    assert numbers == list(range(len(numbers))) and len(numbers) <= case.n, f"choices {numbers} of {case.n}"
    for number, choice in outcome.choices.items():
        _hold_one(f"choice {number}, tokens {choice.ids}", choice, case, emptied)


def _hold_one(what: str, choice: Choice, case: Case, emptied: bool) -> None:
    limits, ids = case.limits, choice.ids
    assert choice.end is not None, f"{what}: has no end"
    assert all(limits.end(ids[:length]) is None for length in range(1, len(ids))), f"{what}: goes on after its end"
    right = limits.end(ids) if ids else None
    assert choice.end == right or (emptied and choice.end == DEAD_END and right is None), (
        f"{what}: ends by {choice.end}"
    )
    if case.ending:
        assert END not in ids[: case.min_tokens], f"{what}: ends before {case.min_tokens} tokens"
    for token in choice.tokens:
        assert math.isfinite(token.logprob) and token.logprob < 1e-3, f"{what}: {token} is not possible"
        assert not math.isnan(token.logq), f"{what}: {token} has no logq"


def _repeats(trial: Trial) -> None:
    """Equal requests get equal answers, also when another one is decoded at the same time."""
    cases = list(trial.cases())
    one, other = cases[0], cases[-1]
    alone = [trial.decode(case) for case in (one, other)]
    assert repr(trial.decode(one)) == repr(alone[0]), "a request repeated is answered otherwise"
    together = [trial.begin(case) for case in (one, other)]
    live = [decoding for decoding, outcome in zip(together, alone, strict=True) if outcome is not None]
    while live:
        live = [decoding for decoding in live if decoding.step()]
    for decoding, outcome in zip(together, alone, strict=True):
        assert outcome is None or repr(decoding.outcome) == repr(outcome), "two requests at a time disturb each other"


def _masks(trial: Trial) -> None:
    """What the stages forbid is in no choice."""
    for case in trial.cases(stages=_forbid):
        if outcome := trial.decode(case):
            _hold(outcome, case)
            for number, choice in outcome.choices.items():
                assert _MASKED.isdisjoint(choice.ids), f"choice {number}, tokens {choice.ids}: holds what is forbidden"


def _emptied(trial: Trial) -> None:
    """A row without a token ends no more than the choices that it belongs to."""
    for stages in (_empty, _nothing):
        for case in trial.cases(stages=stages):
            if outcome := trial.decode(case):
                _hold(outcome, case, emptied=True)


def _branches(trial: Trial) -> None:
    """Longer texts hold no more branches at a time: what is not needed any more is released."""
    most = []
    for length in (_SHORT, _LONG):
        cases = trial.cases(law=law(8), max_tokens=length, min_tokens=0, ending=False, stops=())
        outcomes = filter(None, map(trial.decode, islice(cases, 1)))
        most.append(max((max(outcome.live) for outcome in outcomes), default=0))
    assert most[1] <= 2 * most[0] + 4, f"{most[0]} branches for {_SHORT} tokens, {most[1]} for {_LONG}"


def _broken_off(trial: Trial) -> None:
    """A client may go away after any pass."""
    for passes, case in enumerate(trial.cases()):
        decoding = trial.begin(case)
        try:
            while decoding.outcome.passes < passes and decoding.step():
                pass
        except ProgramError:
            continue
        decoding.close()


def _refuses(trial: Trial) -> None:
    """Whatever a request says, what is wrong with it is a SamplerError that names the field."""
    program, values = trial.program, trial.values
    plain = Setting(1, 5, temperature=program.default_temperature or 1.0, model=trial.model)
    for param in program.params:
        path = f"sampler.{param.name}"
        for odd in _ODD:
            _refused(path, partial(param.check, odd, path))
        for end in (param.low, param.high):
            if math.isfinite(end):
                _refused("", partial(program.check, {**values, param.name: param.kind(end)}, plain))
    for field in program.structured:
        path = f"sampler.{field}"
        refused = [_refused(path, partial(program.parse, field, odd, path, trial.model)) for odd in _ODD]
        assert any(refused), f"'{field}' takes whatever it is given"
    wrong = {"draw": replace(plain, draw="no such draw")}
    if not program.draws:
        wrong["temperature"] = replace(plain, temperature=0.5)
    for field, setting in wrong.items():
        assert _refused(field, partial(program.check, values, setting)), f"takes any {field}"


def _refused(path: str, act: Callable[[], Any]) -> bool:
    try:
        act()
    except SamplerError as error:
        assert error.param and error.param.startswith(path), f"'{error}' names {error.param!r} instead of '{path}'"
        return True
    return False


def _forbid(path: tuple[int, ...], row: list[float]) -> list[float]:
    return [-math.inf if token in _MASKED else value for token, value in enumerate(row)]


def _empty(path: tuple[int, ...], row: list[float]) -> list[float]:
    """Nothing follows a 3, nor a 1 that is the second token."""
    return [-math.inf] * len(row) if path[-1:] == (3,) or path[1:] == (1,) else row


def _nothing(path: tuple[int, ...], row: list[float]) -> list[float]:
    return [-math.inf] * len(row)


CHECKS: dict[str, Callable[[Trial], None]] = {
    "choices": _choices,
    "repeats": _repeats,
    "masks": _masks,
    "emptied": _emptied,
    "branches": _branches,
    "broken_off": _broken_off,
    "refuses": _refuses,
}
