"""Runs one decoding program through every check, without an engine or a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from samplers.contract import Param
from samplers.model_facts import ModelFacts
from samplers.programs.contract import Program
from samplers.registry import RESERVED
from samplers.testing.conformance import Failed
from samplers.testing.program_checks import CHECKS
from samplers.testing.program_trial import FACTS, Trial
from samplers.testing.values import some

MOST_VALUES = 8  # sets of values


def check_program(
    program: Program,
    values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    exceptions: Mapping[str, str] | None = None,
    model: ModelFacts = FACTS,
) -> list[str]:
    """Every check on a program, registered or not; returns the names of those that ran.

    values: parameters as a request gives them, what has a default left out. One set is tried together with other values
    of its scalar parameters, one at a time; several are tried as they are.
    exceptions: checks that this program need not pass, each with the reason.
    model: what it may know; seven tokens, of which 0 is special.

    Raises Failed, an AssertionError that lists what failed and at which values.
    """
    exceptions = dict(exceptions or {})
    if unknown := sorted(set(exceptions) - set(CHECKS)):
        raise ValueError(f"exceptions name no checks: {', '.join(unknown)}; known: {', '.join(CHECKS)}")
    if unreasoned := [check for check, reason in exceptions.items() if not reason]:
        raise ValueError(f"exceptions need a reason: {', '.join(unreasoned)}")
    problems: dict[str, str] = {}
    ran = [check for check in CHECKS if check not in exceptions]
    trials: list[Trial] = []
    try:
        _declared(program)
        trials = _trials(program, values or {}, model)
    except Exception as error:
        problems["declaration"] = f"{error or type(error).__name__}"
    for check in ran:
        for trial in trials:
            try:
                CHECKS[check](trial)
            except Exception as error:
                kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
                problems[check] = f"{kind}{error or type(error).__name__} (at {dict(trial.values)!r:.200})"
                break
    if problems:
        lines = "\n".join(f"  {check}: {text}" for check, text in problems.items())
        raise Failed(f"'{getattr(program, 'name', program)}' is not what a program has to be\n{lines}", problems)
    return ran


def _trials(program: Program, given: Mapping[str, Any] | Sequence[Mapping[str, Any]], model: ModelFacts) -> list[Trial]:
    """Those that the program takes: of the values given and, if it is one set, of others near them."""
    several = [given] if isinstance(given, Mapping) else list(given)
    filled = [_filled(program, one, model) for one in several]
    if isinstance(given, Mapping):
        filled += [{**filled[0], param.name: value} for param in program.params for value in some(param)]
    trials = [Trial(program, values, model) for values in filled]
    taken = [trial for trial in trials if next(trial.cases(), None) is not None]
    for trial, one in zip(trials, several, strict=False):
        assert trial in taken, f"no request is taken at {dict(one)}"
    step = math.ceil(len(taken) / MOST_VALUES)
    return taken[::step]


def _filled(program: Program, given: Mapping[str, Any], model: ModelFacts) -> dict[str, Any]:
    """The checked values of an item."""
    raw, values = dict(given), dict(program.structured_defaults)
    for param in program.params:
        values[param.name] = param.check(raw.pop(param.name, param.when_named), param.name)
    for name in program.structured:
        if name in raw:
            values[name] = program.parse(name, raw.pop(name), name, model)
    assert not raw, f"no fields of '{program.name}': {', '.join(raw)}"
    return values


def _declared(program: Program) -> None:
    """What others read of a program."""
    assert isinstance(program.name, str) and program.name, "it needs a name"
    assert all(isinstance(param, Param) for param in program.params), "params are made of Param"
    fields = [*(param.name for param in program.params), *program.structured]
    assert len(set(fields)) == len(fields), f"a field occurs twice: {', '.join(fields)}"
    assert not RESERVED & set(fields), f"fields of every request: {', '.join(sorted(RESERVED & set(fields)))}"
    assert set(program.structured_defaults) <= set(program.structured), "structured_defaults of unknown fields"
    assert program.default_n >= 1 and (program.default_max_tokens or 1) >= 1, "defaults are at least 1"
