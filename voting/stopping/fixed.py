"""No stopping rule: all samples are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from voting.stopping.base import BaseEvidence, BaseStoppingRule
from voting.stopping.contract import STOPPING_RULES


@STOPPING_RULES.register
class Fixed(BaseStoppingRule):
    """Never fires."""

    name = "none"
    default_samples = None

    def start(self, values: Mapping[str, Any]) -> BaseEvidence:
        return BaseEvidence()
