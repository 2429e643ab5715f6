"""Requests that a program decodes: what they cannot have, and what their program has to know to check itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samplers.chain import Chain
from samplers.contract import SamplerError
from samplers.model_facts import ModelFacts
from samplers.programs.contract import Program, Setting
from server.errors import refuse
from server.runner_limits import unsupported
from server.schema.common import GenerationBody
from server.state import ServedModel


def check_program(program: Program, body: GenerationBody, best_of: int | None, model: ServedModel) -> None:
    """Refuse what no program, or this runner, can honour."""
    name, runner = program.name, model.runner
    for need in sorted(program.needs - {str(one) for one in runner.capabilities}):
        raise unsupported("sampler", f"'{name}', which needs '{need}', is", runner)
    if best_of not in (None, body.n or program.default_n):
        refuse(f"'best_of' excludes '{name}'", "best_of")
    if body.max_tokens == 0:
        refuse(f"'{name}' needs 'max_tokens' of at least 1", "max_tokens")
    if body.return_sampler_trace:
        refuse(
            f"'return_sampler_trace' excludes '{name}': its tokens are not drawn one after the other",
            "return_sampler_trace",
        )
    if body.prompt_boundary not in (None, "off"):
        refuse(f"'prompt_boundary' excludes '{name}'", "prompt_boundary")
    if body.stop and runner.facts.pieces is None:
        refuse(f"'stop' excludes '{name}' here: the text of this model's tokens is not known", "stop")


def check_values(program: Program, values: Mapping[str, Any], asked: Setting, sampler: Any) -> None:
    """What the program itself has against a request; of its own parameters the error names the place in `sampler`.

    Raises SamplerError.
    """
    try:
        program.check(values, asked)
    except SamplerError as error:
        if error.param in values:
            error.param = f"{_place(program.name, sampler)}.{error.param}"
        raise


def _place(name: str, sampler: Any) -> str:
    """Where a request's `sampler` has the item of this name."""
    items = sampler if isinstance(sampler, list) else []
    named = [item.get("name") if isinstance(item, Mapping) else item for item in items]
    return f"sampler[{named.index(name)}]" if name in named else "sampler"


def setting(chain: Chain, n: int, max_tokens: int, min_tokens: int, model: ModelFacts) -> Setting:
    """What a program may ask about its request."""
    stages = {item.name: item.values for item in chain.stages}
    temperature = 0.0 if chain.greedy else stages.get("temperature", {}).get("temperature", 1.0)
    return Setting(n, max_tokens, min_tokens, temperature, frozenset(stages), chain.draw.name, model)
