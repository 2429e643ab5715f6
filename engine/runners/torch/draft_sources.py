"""The sources of drafts that one engine has: its draft model, if there is one, and whatever needs no model."""

from __future__ import annotations

import logging

import spec_decode.drafters  # noqa: F401  registers the sources
from engine.runners.torch.draft_model import DraftModel
from spec_decode.contract import DRAFT_SOURCES, LoadedSource
from spec_decode.drafters.draft_model import DraftModelSource
from spec_decode.drafters.tenants import TenantLimits, Tenants

log = logging.getLogger(__name__)


def draft_sources(draft: DraftModel | None, past_outputs_s: float) -> list[LoadedSource]:
    """The preferred ones first: a draft model guesses everywhere, and of the others those that know how probable their
    guesses are. past_outputs_s: seconds that finished outputs are remembered."""
    loaded: list[LoadedSource] = []
    tenants = Tenants(TenantLimits(seconds=past_outputs_s))
    for source in DRAFT_SOURCES:
        if isinstance(source, DraftModelSource):
            if draft is not None:
                loaded.append(LoadedSource(source, draft, draft.cost()))
            continue
        try:
            loaded.append(LoadedSource(source, source.new_drafter(tenants)))
        except Exception:
            log.exception("drafts from '%s' cannot be made", source.name)
    return sorted(loaded, key=lambda one: (not one.source.draws, not one.source.ranks))
