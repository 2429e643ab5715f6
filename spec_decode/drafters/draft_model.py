"""Drafts of a second, smaller model with the same tokenizer (spec_decode.md 6.1)."""

from __future__ import annotations

from typing import ClassVar

from spec_decode.contract import DRAFT_SOURCES
from spec_decode.drafters.source import BaseSource


@DRAFT_SOURCES.register
class DraftModelSource(BaseSource):
    """Its drafter belongs to the runner that has loaded the model."""

    name: ClassVar[str] = "draft_model"
    draws: ClassVar[bool] = True
    branches: ClassVar[bool] = True
    ranks: ClassVar[bool] = True
