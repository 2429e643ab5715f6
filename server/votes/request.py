"""The field `voting` of a request: a rule, how many samples, how they become answers, and when enough are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from samplers.contract import Param, SamplerError
from voting import rules, stopping  # noqa: F401 - they register themselves
from voting.answers.equivalence import Equivalence, read_equivalence
from voting.answers.extraction import Extraction, read_extraction
from voting.contract import VOTING_RULES, VotingRule
from voting.rule import read_values
from voting.stopping.watch import Stop, read_stop

_SCALARS = (
    Param("on_truncated", str, "abstain", choices=("abstain", "keep")),
    Param("guard_repetition", bool, True),
    Param("use_sample_weights", bool, True),
    Param("return_samples", bool, False),
    Param("reallocate", bool, False),
)
_FIELDS = ("rule", "samples", "at_once", "extract", "equiv", "stop", "params", *(param.name for param in _SCALARS))
# what a response says about a vote; a request that repeats it means the vote
_FOUND_BY_VOTES = frozenset(
    (
        "id", "used_samples", "k_distinct", "dedupe_key", "answer", "confidence", "tie", "abstain_rate", "clusters",
        "baseline_sc", "pruned", "abstained", "pruning", "details", "weight_source", "fallback", "flags", "cert",
        "tokens", "budget", "sample_records", "codes", "tests", "next_test",
    )
)  # fmt: skip
_FOUND_BY_STOPS = frozenset(("fired_at", "value", "cert", "heuristic"))


@dataclass(frozen=True)
class VoteRequest:
    """A checked `voting` object with every default filled in."""

    rule: VotingRule
    values: Mapping[str, Any]  # of the rule
    samples: int  # to be drawn at most
    extraction: Extraction
    equivalence: Equivalence
    stop: Stop
    keep_truncated: bool
    guard_repetition: bool
    use_sample_weights: bool
    return_samples: bool
    at_once: int | None  # samples that are drawn at the same time, at most; None: all
    reallocate: bool  # samples that a prompt leaves over go to others of its request
    given: Mapping[str, Any] = field(repr=False)  # `extract` and `equiv` as a request says them

    @property
    def needs(self) -> frozenset[str]:
        """Of samples, as `VotingRule.needs`."""
        return self.rule.needs(self.values) | self.stop.needs

    @property
    def top(self) -> int | None:
        """How many of the most probable continuations of each token have to be known. None: none."""
        return int(self.values["topk"]) if self.needs & {"entropies", "confidences"} else None

    def report(self) -> dict[str, Any]:
        """Finite JSON: the same vote as a request would ask for it."""
        return {
            "rule": self.rule.name,
            "samples": self.samples,
            **self.given,
            "stop": {"rule": self.stop.rule.name, **self.stop.values},
            "params": dict(self.values),
            "on_truncated": "keep" if self.keep_truncated else "abstain",
            "guard_repetition": self.guard_repetition,
            "use_sample_weights": self.use_sample_weights,
            "return_samples": self.return_samples,
            "at_once": self.at_once,
            "reallocate": self.reallocate,
        }


def read_vote(value: Mapping[str, Any], max_k: int, path: str = "voting") -> VoteRequest:
    """null stands for a default. Raises SamplerError with a dotted path."""
    given = {name: part for name, part in value.items() if part is not None and name not in _FOUND_BY_VOTES}
    for name in given:
        if name not in _FIELDS:
            raise SamplerError(
                f"'{path}.{name}' is not a field of a vote; known: {', '.join(_FIELDS)}", f"{path}.{name}"
            )
    name = given.get("rule", "sc")
    if not isinstance(name, str):
        raise SamplerError(f"'{path}.rule' must be the name of a voting rule", f"{path}.rule")
    rule = VOTING_RULES.get(name, f"{path}.rule")
    stop = read_stop(_asked(given.get("stop")), f"{path}.stop")
    usual = min(stop.rule.default_samples or rule.default_samples, max_k)
    samples = int(Param("samples", int, usual, low=1, high=max_k).check(given.get("samples", usual), f"{path}.samples"))
    at_once = given.get("at_once")
    if at_once is not None:
        at_once = Param("at_once", int, 1, low=1, high=max_k).check(at_once, f"{path}.at_once")
    params = given.get("params", {})
    if not isinstance(params, Mapping):
        raise SamplerError(f"'{path}.params' must be an object", f"{path}.params")
    scalars = {
        param.name: param.check(given.get(param.name, param.neutral), f"{path}.{param.name}") for param in _SCALARS
    }
    answers = {"extract": given.get("extract", "auto"), "equiv": given.get("equiv", "exact")}
    return VoteRequest(
        rule=rule,
        values=read_values(rule, params, samples, f"{path}.params"),
        samples=samples,
        extraction=read_extraction(answers["extract"], f"{path}.extract"),
        equivalence=read_equivalence(answers["equiv"], f"{path}.equiv"),
        stop=stop,
        keep_truncated=scalars["on_truncated"] == "keep",
        guard_repetition=bool(scalars["guard_repetition"]),
        use_sample_weights=bool(scalars["use_sample_weights"]),
        return_samples=bool(scalars["return_samples"]),
        at_once=int(at_once) if at_once is not None else None,
        reallocate=bool(scalars["reallocate"]),
        given=answers,
    )


def _asked(stop: Any) -> Any:
    """A stopping rule without what a response says became of it."""
    if not isinstance(stop, Mapping):
        return stop
    return {name: part for name, part in stop.items() if name not in _FOUND_BY_STOPS}
