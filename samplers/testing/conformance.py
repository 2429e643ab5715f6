"""Runs one sampler through every check that applies to it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from samplers.model_facts import ModelFacts
from samplers.registry import DRAWS, STAGES
from samplers.testing import draw_checks, stage_checks
from samplers.testing.subject import Given, Reference, Subject
from samplers.testing.values import discover
from samplers.testing.world import World, plain_facts

VOCABULARIES = (2, 3, 17, 300, 200_000)
LARGE = 10_000  # from here on only a few rows of the first values


class Failed(AssertionError):
    """What a sampler does not do; `checks` names the checks it failed."""

    def __init__(self, message: str, checks: Collection[str]) -> None:
        super().__init__(message)
        self.checks = tuple(checks)


def conformance(
    name: str,
    values: Sequence[Given] | None = None,
    *,
    exceptions: Mapping[str, str] | None = None,
    reference: Reference | None = None,
    model: Callable[[World], ModelFacts] = plain_facts,
    vocabularies: Sequence[int] = VOCABULARIES,
    seed: int = 0,
) -> list[str]:
    """Every check on the registered stage or draw `name`; returns the names of those that ran.

    values: parameters to check it at, none of them neutral; by default some of every scalar parameter's range. A
    structured field has to be given. What names token ids is a function of the ids: `lambda ids: {"field": [ids[1]]}`,
    so that the ids can be renamed.
    exceptions: checks that this sampler need not pass, each with the reason.
    reference: the slow formula: (row [V] fp64, admission, rows of one) -> the row, NaN where both answers are right, or
    a draw's token.
    model: what the sampler may know of a model with these ids.

    Raises Failed, an AssertionError that lists what failed and at which values.
    """
    exceptions = dict(exceptions or {})
    is_draw = name in DRAWS
    sampler = DRAWS.get(name) if is_draw else STAGES.get(name)
    checks = draw_checks.CHECKS if is_draw else stage_checks.CHECKS
    known = dict(checks)
    if unknown := sorted(set(exceptions) - set(known)):
        raise ValueError(f"exceptions name no checks: {', '.join(unknown)}; known: {', '.join(known)}")
    if unreasoned := [check for check, reason in exceptions.items() if not reason]:
        raise ValueError(f"exceptions need a reason: {', '.join(unreasoned)}")
    given = discover(sampler, model) if values is None else list(values)
    if not given:
        raise Failed(f"'{name}': no values make it do anything", ["values"])
    ran: list[str] = []
    problems: dict[str, str] = {}
    for vocab in vocabularies:
        subject = Subject(sampler, given[:1] if vocab >= LARGE else given, vocab, model, reference, seed)
        for check, run in known.items():
            if check in exceptions or check in problems or not subject.applies(check, large=vocab >= LARGE):
                continue
            try:
                run(subject)
            except Exception as error:
                problems[check] = f"over {vocab} tokens: {error or type(error).__name__}"
                if not isinstance(error, AssertionError):
                    problems[check] += f" ({type(error).__name__} at {_place(error)})"
            ran += [check] if check not in ran else []
    if problems:
        lines = "\n".join(f"  {check}: {text}" for check, text in problems.items())
        raise Failed(f"'{name}' is not what a {'draw' if is_draw else 'stage'} has to be\n{lines}", problems)
    return ran


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
