"""Base class of draft sources: no parameters, and nothing that values could exclude."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from samplers.contract import Param
from spec_decode.contract import Drafter
from spec_decode.drafters.tenants import Tenants


class BaseSource:
    """See `DraftSource` of the contract."""

    name: ClassVar[str]
    draws: ClassVar[bool] = False
    branches: ClassVar[bool] = False
    ranks: ClassVar[bool] = False
    field: ClassVar[str] = ""
    params: ClassVar[tuple[Param, ...]] = ()

    def new_drafter(self, tenants: Tenants | None = None) -> Drafter:
        """Of an engine, for sources that need nothing else. tenants: past outputs, for those that look at them."""
        raise NotImplementedError

    def check(self, values: Mapping[str, Any], path: str) -> None:
        pass
