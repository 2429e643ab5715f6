"""The methods that `bench samplers` compares: names for people and the sampling fields of a request.

Knows nothing about how they are measured. A method this build does not have is skipped, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from samplers.chain import Chain, resolve
from samplers.contract import SamplerError
from samplers.model_facts import ModelFacts

PLAIN = "plain, T = 1"


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)


ARITHMETIC = {"draw": "arithmetic"}
METHODS = (
    Method(PLAIN),
    Method("T = 0.7", {"temperature": 0.7}),
    Method("dynamic T = 0.8 ± 0.4", {"temperature": 0.8, "dynatemp_range": 0.4}),
    Method("top-k 40", {"top_k": 40}),
    Method("top-p 0.9", {"top_p": 0.9}),
    Method("min-p 0.05", {"min_p": 0.05}),
    Method("min-p 0.1", {"min_p": 0.1}),
    Method("top-a 0.2", {"top_a": 0.2}),
    Method("typical 0.95", {"typical_p": 0.95}),
    Method("typical 0.9", {"typical_p": 0.9}),
    Method("typical 0.2", {"typical_p": 0.2}),
    Method("epsilon 6e-4", {"epsilon_cutoff": 6e-4}),
    Method("eta 2e-3", {"eta_cutoff": 2e-3}),
    Method("top-nσ 1", {"top_n_sigma": 1.0}),
    Method("tail-free 0.95", {"tfs": 0.95}),
    Method("top-H 0.4", {"top_h": 0.4}),
    Method("XTC 0.5", {"xtc_probability": 0.5}),
    Method("smoothing 0.3", {"smoothing_factor": 0.3}),
    Method("mirostat τ = 3", {"mirostat_tau": 3.0}),
    Method("adaptive-p 0.5", {"adaptive_p": 0.5}),
    Method("repetition 1.1, T = 0.7", {"repetition_penalty": 1.1, "temperature": 0.7}),
    Method("DRY 0.8, T = 0.7", {"dry_multiplier": 0.8, "temperature": 0.7}),
    Method("no repeated 4-gram, T = 0.7", {"no_repeat_ngram_size": 4, "temperature": 0.7}),
    Method("RPG, T = 0.7", {"rpg": {"language": "python"}, "temperature": 0.7}),
    Method("reuse cap, T = 0.7", {"reuse_cap": 0.5, "temperature": 0.7}),
    Method("gumbel draw", {"draw": "gumbel"}),
    Method("basis-aware", {"draw": "basis_aware"}),
    Method("arithmetic", ARITHMETIC),
    Method("arithmetic, T = 0.7", {**ARITHMETIC, "temperature": 0.7}),
    Method("arithmetic, top-p 0.9", {**ARITHMETIC, "top_p": 0.9}),
    Method("arithmetic, seeded order", {**ARITHMETIC, "vocab_order": "seeded"}),
)
# independent draws and arithmetic ones of the same law
PAIRS = ((PLAIN, "arithmetic"), ("T = 0.7", "arithmetic, T = 0.7"), ("top-p 0.9", "arithmetic, top-p 0.9"))


def top_p(value: float) -> Method:
    return Method(f"top-p {value:g}", {"top_p": value})


def typical(value: float) -> Method:
    return Method(f"typical {value:g}", {"typical_p": value})


# both families end in plain sampling, and reach down to where they meet in mean NLL
TOP_P_GRID = (*map(top_p, (0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 0.95)), Method(PLAIN))
TYPICAL_GRID = (*map(typical, (0.1, 0.2, 0.35, 0.5, 0.7, 0.8, 0.9, 0.95)), Method(PLAIN))


@dataclass(frozen=True)
class Available:
    """What of the methods this build can run with this model."""

    chains: dict[str, Chain]
    skipped: dict[str, str]  # name -> reason


def available(methods: tuple[Method, ...], vocab: int, facts: ModelFacts) -> Available:
    chains: dict[str, Chain] = {}
    skipped: dict[str, str] = {}
    for method in methods:
        try:
            chains[method.name] = resolve(method.fields, vocab, facts)
        except SamplerError as error:
            skipped[method.name] = str(error).split("; known:")[0]
    return Available(chains, skipped)
