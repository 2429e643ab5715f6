"""Past outputs of many tenants, each under its own key and never seen from another one. For the engine thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from spec_decode.drafters.past_outputs import PastOutputs


@dataclass(frozen=True)
class TenantLimits:
    """A token takes 72 bytes. Tenants that have written nothing for the longest time make room."""

    tokens: int = 2**18  # per tenant, a power of two
    outputs: int = 10_000  # per tenant
    tenants: int = 16
    seconds: float = float("inf")  # that an output is held


class Tenants:
    """Keys are those that have been authenticated, never anything that a client may choose."""

    def __init__(self, limits: TenantLimits) -> None:
        self._limits = limits
        self._past: OrderedDict[str, PastOutputs] = OrderedDict()  # the latest writer last

    def past(self, tenant: str, now: float) -> PastOutputs | None:
        """What may be looked at for this tenant; now: seconds, rising. None: nothing."""
        past = self._past.get(tenant)
        if past is not None:
            past.expire(now - self._limits.seconds)
        return past

    def add(self, tenant: str, output: Sequence[int], now: float) -> None:
        past = self._past.setdefault(tenant, PastOutputs(self._limits.tokens, self._limits.outputs))
        self._past.move_to_end(tenant)
        past.expire(now - self._limits.seconds)
        past.add(output, now)
        if len(self._past) > self._limits.tenants:
            self._past.popitem(last=False)
