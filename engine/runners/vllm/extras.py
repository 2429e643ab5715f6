"""What vLLM's engine processes need of ours: facts for samplers, sizes, and where to report to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.runners.vllm.reports import Address
from samplers.model_facts import ModelFacts

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True)
class ProcessorSetup:
    """Travels pickled, inside vLLM's configuration."""

    facts: ModelFacts
    vocab_size: int  # ids below it may be drawn; rows of logits may be longer
    slots: int  # choices whose sampler states are kept
    reports: Address  # of the inbox
    rows: str | None = None  # path of the memory of a `RowInbox`; None: no programs
    row_slots: int = 0


class Extras(dict[str, Any]):
    """vLLM's `additional_config` with a setup beside its items.

    vLLM hashes the items, to find code it has compiled before; the setup differs at every start and is no item.
    """

    def __init__(self, items: dict[str, Any], setup: ProcessorSetup) -> None:
        super().__init__(items)
        self.setup = setup


def setup_of(config: VllmConfig) -> ProcessorSetup:
    """The setup of a configuration that the runner has made."""
    extras = config.additional_config
    assert isinstance(extras, Extras), "the processor runs only in engines that the runner has started"
    return extras.setup
