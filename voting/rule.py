"""What the simplest voting rule does not have to say, and how a request's parameters become a rule's values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from samplers.contract import Param, SamplerError
from voting.contract import Cluster, Drawing, Sample, Tally, VotingRule

_FIELDS: Mapping[str, tuple[str, Callable[[Sample], Sequence[float] | None]]] = MappingProxyType(
    {
        "logprobs": ("mean_logprob", lambda sample: None if sample.mean_logprob is None else (sample.mean_logprob,)),
        "lengths": ("n_tokens", lambda sample: (sample.n_tokens,) if sample.n_tokens else None),
        "entropies": ("topk_entropy", lambda sample: sample.entropies),
        "confidences": ("confs", lambda sample: sample.confidences),
    }
)  # what a rule may need -> the field of a sample record that holds it, and how to read it


class BaseRule:
    """Weighs by what every sample has, and takes whole completions as they are."""

    name: ClassVar[str]
    params: ClassVar[tuple[Param, ...]] = ()
    structured: ClassVar[tuple[str, ...]] = ()
    structured_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    default_samples: ClassVar[int] = 16
    instruction: ClassVar[str] = ""

    def parse(self, field: str, value: Any, path: str) -> Any:
        raise SamplerError(f"'{path}' is not a parameter of {self.name}", path)

    def check(self, values: Mapping[str, Any], samples: int) -> None:
        """Everything in range is fine."""

    def needs(self, values: Mapping[str, Any]) -> frozenset[str]:
        return frozenset()

    def drawing(self, values: Mapping[str, Any]) -> Drawing:
        return Drawing.INDEPENDENT

    def answer_text(self, text: str) -> str:
        return text

    def abstentions(self, samples: Sequence[Sample], values: Mapping[str, Any]) -> Mapping[int, str]:
        """Samples without tokens, and with numbers that are not finite."""
        found: dict[int, str] = {}
        for sample in (sample for sample in samples if not sample.abstains):
            for need in sorted(self.needs(values) & _FIELDS.keys()):
                field, read = _FIELDS[need]
                numbers = read(sample)
                if numbers is None:
                    raise SamplerError(f"'{self.name}' needs '{field}' of sample {sample.index}", field)
                if not numbers:
                    found[sample.index] = "no_tokens"
                elif not all(map(math.isfinite, numbers)):
                    found[sample.index] = "bad_logprob"
        return found

    def tally(self, samples: Sequence[Sample], clusters: Sequence[Cluster], values: Mapping[str, Any]) -> Tally:
        raise NotImplementedError


def read_values(
    rule: VotingRule, given: Mapping[str, Any], samples: int, path: str = "voting.params"
) -> dict[str, Any]:
    """Every parameter of a rule. null stands for the default of a scalar. Raises SamplerError with a dotted path."""
    scalars = {param.name: param for param in rule.params}
    values = {**rule.structured_defaults, **{name: param.when_named for name, param in scalars.items()}}
    for name, value in given.items():
        where = f"{path}.{name}"
        if name in rule.structured:
            values[name] = rule.parse(name, value, where)
        elif name not in scalars:
            known = ", ".join((*scalars, *rule.structured)) or "none"
            raise SamplerError(f"'{where}' is not a parameter of {rule.name}; known: {known}", where)
        elif value is not None:
            values[name] = scalars[name].check(value, where)
    for name in rule.structured:
        if name not in values:
            raise SamplerError(f"'{path}.{name}' is required", f"{path}.{name}")
    try:
        rule.check(values, samples)
    except SamplerError as error:
        raise SamplerError(str(error), f"{path}.{error.param}") from error
    return values


def unrecorded(sample: Sample, needs: frozenset[str]) -> str | None:
    """The first field of a sample's record that these needs read and nobody has recorded. None: all are there."""
    read = ((field, numbers(sample)) for need, (field, numbers) in _FIELDS.items() if need in needs)
    return next((field for field, found in read if found is None), None)


def by_cluster(
    clusters: Sequence[Cluster],
    worth: Mapping[int, float],
    combine: Callable[[Sequence[float]], float] = math.fsum,  # of no number at all too, whatever their order
) -> tuple[float, ...]:
    """The weight of each cluster from what its members are worth; those not in `worth` count for nothing."""
    return tuple(combine([worth[index] for index in cluster.members if index in worth]) for cluster in clusters)


def voters(samples: Sequence[Sample]) -> list[Sample]:
    """Those that do not abstain."""
    return [sample for sample in samples if not sample.abstains]


def distinct(samples: Sequence[Sample]) -> list[Sample]:
    """The first of each set of equal completions."""
    first: dict[Any, Sample] = {}
    for sample in samples:
        first.setdefault(sample.identity, sample)
    return list(first.values())
