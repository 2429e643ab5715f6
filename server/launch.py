"""From a configuration to a running server: loads the models, builds the application, drains on SIGTERM.

The only module that knows both the runners and the HTTP application.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

import uvicorn
from fastapi import FastAPI

from models.embedded import EMBEDDED, locate
from samplers.model_facts import ModelFacts
from samplers.programs.ngrams import NgramError, NgramTables
from server.app import create_app
from server.config import ConfigError, EndpointSettings, ServeConfig
from server.drafting import Drafting, check_drafting, load_drafting
from server.presets import usable_presets
from server.runners import OnFatal, check_runner_settings, follow_server, load_runner
from server.state import Limits, ServedModel, ServerState
from server.text.codec import TextCodec
from server.votes.endpoint import Endpoint
from server.votes.executor import CodeExecutor
from server.votes.scoring.endpoint import RewardEndpoint
from server.votes.store import VoteStore
from voting.scorers import LIKELIHOOD, SCORERS

log = logging.getLogger(__name__)
E = TypeVar("E", bound=Endpoint)
LAST_WORDS_S = 2.0  # for errors to reach clients whose requests were ended
FATAL_EXIT = 70  # the engine died; a supervisor should start us again


def serve_model(
    name: str,
    config: ServeConfig,
    served_id: str | None = None,
    on_fatal: OnFatal | None = None,
    draft: str | None = None,
) -> ServedModel:
    """Load one model. draft: the model that drafts for it. Raises ConfigError, UnsupportedModelError, SettingsError or
    OSError."""
    began = time.monotonic()
    folder = find_model(name)
    codec = TextCodec.load(folder)
    ngrams = None if config.ngrams is None else load_ngrams(config.ngrams, codec)
    tokens = ModelFacts(codec.pieces(), codec.special_ids, ngrams=ngrams)
    drafting = Drafting() if draft is None else load_drafting(config, find_model(draft), name, codec)
    runner = load_runner(folder, config, on_fatal, tokens, drafting)
    model = ServedModel(
        id=served_id or (Path(name).name if Path(name).is_dir() else name),
        runner=runner,
        tokenizer=codec,
        root=name,
        generation_defaults={**runner.generation_defaults, "eos_token_id": sorted(runner.eos_token_ids)},
        presets=config.presets,
    )
    stats = runner.stats()
    log.info(
        "%s ready in %.1f s: %s, context %d, %d KV pages, %d slots",
        model.id,
        time.monotonic() - began,
        runner.description,
        runner.max_model_len,
        stats.kv_pages_total,
        stats.slots_total,
    )
    return model


def find_model(name: str) -> str:
    """A folder or hub id. Raises ConfigError for what cannot be one."""
    folder = locate(name)
    if not Path(folder).is_dir() and ("/" not in name or name.startswith((".", "/", "~"))):
        known = ", ".join(EMBEDDED)
        raise ConfigError(f"there is no model '{name}'; say an embedded one ({known}), a folder or a hub id owner/name")
    return folder


def load_ngrams(file: str, codec: TextCodec) -> NgramTables:
    """N-grams of the tokenizer's ids. Raises ConfigError."""
    try:
        tables = NgramTables.load(Path(file))
        tables.check(codec.vocabulary, codec.fingerprint)
    except NgramError as error:
        raise ConfigError(f"setting 'ngrams': {error}") from None
    except OSError as error:
        raise ConfigError(f"setting 'ngrams': cannot read {file}: {error.strerror}") from None
    return tables


def reward_endpoints(configured: Mapping[str, EndpointSettings]) -> dict[str, RewardEndpoint]:
    """By name. Raises ConfigError."""
    endpoints = {}
    for name, settings in configured.items():
        if name == LIKELIHOOD or name in SCORERS:
            raise ConfigError(f"setting 'scorers': there is a scorer '{name}' already")
        endpoints[name] = endpoint_of(RewardEndpoint, settings, f"scorers.{name}")
    return endpoints


def endpoint_of(kind: type[E], settings: EndpointSettings, setting: str) -> E:
    """The endpoint of a setting. Raises ConfigError."""
    key = None
    if settings.api_key_env is not None and not (key := os.environ.get(settings.api_key_env)):
        raise ConfigError(f"setting '{setting}.api_key_env': the variable {settings.api_key_env} is not set")
    return kind(str(settings.url), settings.timeout_s, key)


def build_state(config: ServeConfig, on_fatal: OnFatal | None = None) -> ServerState:
    """Load every model the configuration names. Raises as `serve_model`, and ConfigError."""
    scorers = reward_endpoints(config.scorers)
    executor = (
        None if config.code_executor is None else endpoint_of(CodeExecutor, config.code_executor, "code_executor")
    )
    check_runner_settings(config)
    check_drafting(config)
    draft = config.draft_model if config.spec_max_len else None
    alone = config.model_copy(update={"draft_vocab": {}})
    served = [serve_model(config.model, alone if draft is None else config, config.served_name, on_fatal, draft)]
    if config.draft_model is not None:
        served.append(serve_model(config.draft_model, alone, None, on_fatal))
    state = ServerState(
        served,
        api_keys=tuple(config.api_key),
        limits=Limits(
            body_bytes=config.max_body_bytes,
            max_k=config.max_k,
            allow_chat_template=config.allow_chat_template,
            past_outputs=config.spec_past_outputs,
            require_lossless=config.require_lossless,
        ),
        cors_origins=tuple(config.cors_origins),
        scorers=scorers,
        code_executor=executor,
        votes=VoteStore(config.vote_ttl_s, config.max_votes, config.vote_bytes),
    )
    for other in served[1:]:  # nobody drafts for it
        other.presets = usable_presets(other, state, config.presets)
    return state


class _Server(uvicorn.Server):
    """Keeps answering while it drains: running requests finish, new ones get 503, then the process ends."""

    def __init__(self, settings: uvicorn.Config, state: ServerState, grace_s: float) -> None:
        super().__init__(settings)
        self._state = state
        self._grace_s = grace_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._state.draining:  # asked twice: stop now
            self.should_exit = self.force_exit = True
            return
        log.info("stopping: %d requests in flight get up to %.0f s", self._state.in_flight, self._grace_s)
        self._state.draining = True
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._start_draining)  # a signal handler may run anywhere

    def _start_draining(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        """Requests that have not finished by the end of the grace period end with an error their clients can read."""
        await self._until_idle(self._grace_s)
        if self._state.in_flight:
            log.warning("ending %d requests that are still running", self._state.in_flight)
            await asyncio.gather(*(model.runner.close(0.0) for model in self._state.models))
            await self._until_idle(LAST_WORDS_S)
        self.should_exit = True

    async def _until_idle(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._state.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Prepared:
    """Everything that can go wrong before the first request has gone right."""

    config: ServeConfig
    listener: socket.socket
    state: ServerState
    app: FastAPI
    failures: list[BaseException]  # filled when the engine dies


def prepare(config: ServeConfig) -> Prepared:
    """Bind, load, build. Raises ConfigError, PresetError, SettingsError, UnsupportedModelError or OSError."""
    failures: list[BaseException] = []

    def on_fatal(error: BaseException) -> None:
        failures.append(error)
        os.kill(os.getpid(), signal.SIGTERM)

    listener = _listen(config)
    state = build_state(config, on_fatal)
    return Prepared(config, listener, state, create_app(state), failures)


def follow(config: ServeConfig) -> int:
    """Compute for a server on another machine until told to stop; the exit status. Raises as `prepare`."""
    check_runner_settings(config)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folder = find_model(config.model)
    codec = TextCodec.load(folder)
    follow_server(folder, config, ModelFacts(codec.pieces(), codec.special_ids))
    log.error("a process of the engine has ended")
    return FATAL_EXIT


def run(prepared: Prepared) -> int:
    """Serve until told to stop; the exit status."""
    state = prepared.state
    settings = uvicorn.Config(
        prepared.app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
        lifespan="off",
    )
    host, port = prepared.listener.getsockname()[:2]
    if not state.api_keys and not ipaddress.ip_address(host).is_loopback:
        log.warning("no API key is set: whoever reaches %s may use this server", host)
    log.info("serving %s on http://%s:%d", ", ".join(model.id for model in state.models), host, port)
    server = _Server(settings, state, prepared.config.grace_s)

    # what lives as long as the server need not be searched for garbage: answers with many log-probabilities, of which
    # every one is an object, took a seventh longer
    gc.collect()
    gc.freeze()

    async def main() -> None:
        await server.serve(sockets=[prepared.listener])
        await state.close()

    with asyncio.Runner(loop_factory=_event_loop()) as runner:
        runner.run(main())
    return FATAL_EXIT if prepared.failures else 0


def _event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it exists; None: asyncio's own."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _listen(config: ServeConfig) -> socket.socket:
    """Bind before loading anything: a taken port is known at once."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # the protocol is named so that asyncio sees TCP and sends small answers at once (TCP_NODELAY)
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(0)  # claims the port; clients wait for uvicorn, which listens again with its own backlog
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {config.host}:{config.port}: {error.strerror}") from None
    return listener
