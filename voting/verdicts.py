"""What a person says about a vote: one entry of a session's log (ConAIR, arXiv 2411.15587)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from samplers.contract import SamplerError

ACCEPT, REJECT, CORRECT = VERDICTS = ("accept", "reject", "correct")
_TARGETS = {"cluster_id": "cluster", "test_id": "test"}
_FIELDS = (*_TARGETS, "verdict", "value", "passes")


class VoteClosed(SamplerError):
    """A verdict has ended the session."""


class UnknownTarget(SamplerError):
    """The session has no cluster or test of that id."""


@dataclass(frozen=True)
class Verdict:
    """Everything the session needs to come to the same state once more."""

    target: str  # 'cluster' or 'test'
    id: int
    verdict: str  # of VERDICTS
    value: str | None  # the right answer or expected output, of 'correct' only
    time_s: float  # since the epoch
    caller: str
    column: tuple[bool, ...] | None = None  # of a corrected test: which codes pass it now

    def report(self) -> dict[str, Any]:
        """Finite JSON."""
        said = {f"{self.target}_id": self.id, "verdict": self.verdict, "time_s": self.time_s, "caller": self.caller}
        value = {} if self.value is None else {"value": self.value}
        return said | value | ({} if self.column is None else {"passes": list(self.column)})


class Session(Protocol):
    """Immutable: a verdict makes another one."""

    def after(self, verdict: Verdict) -> Self:
        """Raises VoteClosed, UnknownTarget or SamplerError, and is then as if the verdict had never come."""
        ...


S = TypeVar("S", bound=Session)


def replay(start: S, log: Iterable[Verdict]) -> S:
    """The state after all verdicts of a log."""
    for verdict in log:
        start = start.after(verdict)
    return start


def read_verdict(body: Mapping[str, Any], time_s: float, caller: str) -> Verdict:
    """{"cluster_id" | "test_id", "verdict", "value"?, "passes"?} as sent. Raises SamplerError that names the field."""
    for name in body:
        if name not in _FIELDS:
            raise SamplerError(f"'{name}' is not a field of a verdict; known: {', '.join(_FIELDS)}", name)
    named = [name for name in _TARGETS if body.get(name) is not None]
    if len(named) != 1:
        raise SamplerError("a verdict is about one cluster_id or one test_id", "cluster_id")
    (name,) = named
    target = body[name]
    if isinstance(target, bool) or not isinstance(target, int):
        raise SamplerError(f"'{name}' must be an integer", name)
    verdict, value = body.get("verdict"), body.get("value")
    if verdict not in VERDICTS:
        raise SamplerError(f"'verdict' must be one of {', '.join(VERDICTS)}", "verdict")
    if (value is not None) != (verdict == CORRECT):
        raise SamplerError("'value' comes with the verdict 'correct', and only with that", "value")
    if value is not None and not isinstance(value, str):
        raise SamplerError("'value' must be a string", "value")
    column = _column(body.get("passes"))
    if column is not None and (_TARGETS[name], verdict) != ("test", CORRECT):
        raise SamplerError("'passes' comes with the verdict 'correct' on a test, and only with that", "passes")
    return Verdict(_TARGETS[name], target, verdict, value, time_s, caller, column)


def _column(passes: Any) -> tuple[bool, ...] | None:
    if passes is None:
        return None
    if not isinstance(passes, list) or not all(isinstance(one, bool) for one in passes):
        raise SamplerError("'passes' must be a list of true and false", "passes")
    return tuple(passes)
