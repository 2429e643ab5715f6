"""The contract of stopping rules: fed the cluster of each sample in index order, they say when to draw no more.

Knows nothing about texts or answers; clusters are labels. A rule looks at samples, never at the clock.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Protocol

from samplers.contract import Param
from samplers.registry import Registry

Label = Hashable | None  # of a sample's cluster; None: it abstains


class Evidence(Protocol):
    """What a rule remembers of one vote. Owned by whoever started it; not thread-safe."""

    enough: bool  # it has fired; nothing is added afterwards
    value: float | None  # what the rule compares with its threshold, at the last look; None: there was none

    def add(self, label: Label, weight: float) -> None:
        """The next sample's cluster and weight; the weight is read only where the rule `needs` log-probabilities."""
        ...

    def basis(self, seen: int) -> range:
        """Of the `seen` samples so far, those that the answer is taken from."""
        ...

    def details(self) -> Mapping[str, Any]:
        """Finite JSON, labels aside: what else is to be reported."""
        ...


class StoppingRule(Protocol):
    """Stateless and pure: equal labels in equal order give equal decisions."""

    name: ClassVar[str]
    params: ClassVar[tuple[Param, ...]]  # of the request's `voting.stop`
    default_samples: ClassVar[int | None]  # of a request that does not say; None: as without a stopping rule
    needs_iid: ClassVar[bool]  # what it says is void for samples that depend on each other

    def needs(self, values: Mapping[str, Any]) -> frozenset[str]:
        """Of samples, as `VotingRule.needs`."""
        ...

    def start(self, values: Mapping[str, Any]) -> Evidence: ...


STOPPING_RULES: Registry[StoppingRule] = Registry("stopping rule", "drafthouse.stopping_rules")
