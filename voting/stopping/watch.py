"""One vote under a stopping rule: `voting.stop` of a request, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from samplers.contract import SamplerError
from voting.stopping.contract import STOPPING_RULES, Label, StoppingRule
from voting.stopping.fixed import Fixed


class Watch:
    """Is fed every sample in index order until it says that it has seen enough. Not thread-safe."""

    def __init__(self, rule: StoppingRule, values: Mapping[str, Any]) -> None:
        self._rule = rule
        self._evidence = rule.start(values)
        self.seen = 0

    @property
    def fired(self) -> bool:
        return self._evidence.enough

    @property
    def basis(self) -> range:
        """The samples, in the order they were fed, that the answer is to be taken from."""
        return self._evidence.basis(self.seen)

    def feed(self, label: Label, weight: float = 1) -> bool:
        """True: draw no more. Raises ValueError once it has said so.

        label: of the sample's cluster, None if it abstains. weight: its q, for rules that need log-probabilities.
        """
        if self.fired:
            raise ValueError("the rule has fired; samples that follow do not belong to the vote")
        self.seen += 1
        self._evidence.add(label, weight)
        return self.fired

    def report(self) -> dict[str, Any]:
        """`stop` of the response: `fired_at`, after how many samples, null if never; `value`, what the rule compares
        with its threshold. Finite JSON, but for targets, which are labels as they were fed."""
        fired_at = self.seen if self.fired else None
        return {
            "rule": self._rule.name,
            "fired_at": fired_at,
            "value": self._evidence.value,
            **self._evidence.details(),
        }


@dataclass(frozen=True)
class Stop:
    """A stopping rule with its parameters."""

    rule: StoppingRule
    values: Mapping[str, Any]

    @property
    def never_fires(self) -> bool:
        """There is nothing to be fed."""
        return isinstance(self.rule, Fixed)

    @property
    def needs(self) -> frozenset[str]:
        return self.rule.needs(self.values)

    def watch(self) -> Watch:
        return Watch(self.rule, self.values)

    def over(self, samples: Iterable[tuple[Label, float]]) -> Watch:
        """What becomes of samples that are all there: (label, weight) in index order."""
        watch = self.watch()
        for label, weight in samples:
            if watch.feed(label, weight):
                break
        return watch


def read_stop(value: Any, path: str = "voting.stop") -> Stop:
    """A name, or an object with a `rule` and its parameters; null is none. Raises SamplerError with a dotted path."""
    given = {"rule": value} if isinstance(value, str) else {"rule": "none"} if value is None else value
    if not isinstance(given, Mapping):
        raise SamplerError(f"'{path}' must be a string or an object", path)
    where = path if isinstance(value, str) else f"{path}.rule"
    name = given.get("rule")
    if not isinstance(name, str):
        raise SamplerError(f"'{where}' must be the name of a stopping rule", where)
    rule = STOPPING_RULES.get(name, where)
    params = {param.name: param for param in rule.params}
    values = {name: param.when_named for name, param in params.items()}
    for field, part in given.items():
        if field == "rule" or (part is None and field in params):
            continue
        where = f"{path}.{field}"
        if field not in params:
            known = ", ".join(params) or "none"
            raise SamplerError(f"'{where}' is not a parameter of {rule.name}; known: {known}", where)
        values[field] = params[field].check(part, where)
    return Stop(rule, values)
