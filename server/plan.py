"""From a request body to a plan: prompts tokenized, limits applied, every default filled in.

The last place where fields have names of the API. Knows nothing about how answers look.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from starlette.requests import Request

from engine.request import DecodeRequest
from samplers.chain import Chain
from samplers.programs.contract import PROGRAMS
from server.answers.trace import CANDIDATES
from server.auth import owner_of
from server.boundary import suggest_request_id
from server.choice import TextOptions
from server.errors import refuse, too_long
from server.generate import Job
from server.presets import fields_below, merged, resolve_sampling, sampling_fields
from server.programs import check_program, check_values, setting
from server.prompt_boundary import check_boundary
from server.prompt_boundary import report as boundary_report
from server.prompts import PromptInput
from server.refusals import HANDLED, check_common, refuse_foreign, refuse_unavailable
from server.runner_limits import check_runner
from server.schema.common import INERT, PASSED_SAMPLING, GenerationBody
from server.schema.parse import log_unknown, read_body_as, refuse_look_alikes, refuse_surrogates, validate
from server.speculation import read_speculation
from server.state import Limits, ServedModel, ServerState
from server.text.covers import Covering
from server.votes.compatibility import check_vote, flags_of
from server.votes.election import Election
from server.votes.problem import Problem
from server.votes.request import VoteRequest, read_vote
from spec_decode.facts import SpecFacts
from spec_decode.request import Plain, SpecRequest
from voting.contract import Drawing

WHOLE_ANSWER_INTERVAL_S = 0.1
XARGS = ("sampler", "spec_decode", "voting")
B = TypeVar("B", bound=GenerationBody)
B_co = TypeVar("B_co", bound=GenerationBody, covariant=True)


@dataclass(frozen=True)
class Call(Generic[B_co]):
    """A checked request: its body with the preset merged in, and the layers it came from."""

    state: ServerState
    body: B_co
    model: ServedModel
    request: Mapping[str, Any]  # as sent
    preset: Mapping[str, Any]
    arrived: float
    vote: VoteRequest | None
    owner: str  # a name for its key; empty: it needs none

    @property
    def tenant(self) -> str | None:
        """Whose past outputs may be looked at and added to. None: nobody's."""
        may = self.state.limits.past_outputs and self.body.store is not False
        return self.owner or None if may else None


@dataclass(frozen=True)
class Plan:
    """What the answer needs besides the events."""

    id: str
    created: int
    model: str  # as requested
    fingerprint: str
    served: ServedModel
    job: Job
    prompts: tuple[PromptInput, ...]
    chain: Chain
    sampler_report: list[dict[str, Any]]
    speculation: SpecRequest | Plain
    seed: int | None  # None: the runner draws without one
    n: int  # choices returned per prompt
    stream: bool
    traced: bool  # choices carry a `sampler_trace`
    boundary: dict[str, Any] | None  # what the answer says about `prompt_boundary`
    include_usage: bool
    continuous_usage: bool


async def read_call(request: Request, state: ServerState, kind: type[B]) -> Call[B]:
    """Parse and check a generation request."""
    arrived = time.perf_counter()
    raw, body = await read_body_as(request, state.limits.body_bytes, kind, lambda raw: prepared(request, raw, kind))
    owner = owner_of(request.headers.get("authorization"), state.api_keys)
    return checked(state, kind, raw, body, arrived, owner)


def prepared(request: Request, raw: dict[str, Any], kind: type[B]) -> dict[str, Any]:
    """The fields of a body as sent, ready to be validated as `kind`."""
    suggest_request_id(request, raw.get("request_id") or raw.get("rid"))
    refuse_look_alikes(raw, _known(kind))
    refuse_foreign(raw, kind)
    return expand_xargs(raw)


def _known(kind: type[GenerationBody]) -> tuple[str, ...]:
    return (*kind.model_fields, *PASSED_SAMPLING, *HANDLED, *INERT)


def checked(state: ServerState, kind: type[B], raw: Mapping[str, Any], body: B, arrived: float, owner: str) -> Call[B]:
    """The call of a body that has been prepared and validated. arrived: time.perf_counter(); owner: as in Call."""
    model, preset_name = state.find(body.model)
    preset: Mapping[str, Any] = {}
    if preset_name is not None:
        preset = model.presets[preset_name]
        body = validate(kind, merged(raw, preset))
    refuse_unavailable(merged(raw, preset))
    check_common(body, model.runner.vocab_size)
    check_runner(body, model.runner)
    log_unknown(raw, _known(kind), state.logged_names)
    vote = None if body.voting is None else read_vote(body.voting, state.limits.max_k)
    return Call(state, body, model, raw, preset, arrived, vote, owner)


def expand_xargs(raw: dict[str, Any]) -> dict[str, Any]:
    """Move our fields out of `vllm_xargs`, the only place some clients can put them."""
    xargs = raw.get("vllm_xargs")
    if not isinstance(xargs, dict):
        return raw
    raw = dict(raw)
    for name, value in xargs.items():
        path = f"vllm_xargs.{name:.100}"
        if value is None:
            continue
        if name not in XARGS:
            refuse(f"unknown '{path}'; known: {', '.join(XARGS)}", path)
        if raw.get(name) is not None:
            refuse(f"'{name}' is given both at top level and in 'vllm_xargs'", path)
        if isinstance(value, str) and value[:1] in ("{", "["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                refuse(f"'{path}' is not valid JSON", path)
            refuse_surrogates(value, ("vllm_xargs", name))
        raw[name] = value
    return raw


def make_plan(
    call: Call[Any],
    prefix: str,
    prompts: list[PromptInput],
    *,
    max_tokens: int | None,
    max_tokens_field: str,
    default_max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
    n: int | None,
    best_of: int | None = None,
    echo: bool = False,
    coverings: list[Covering] | None = None,
    problems: Sequence[Problem] = (),
) -> Plan:
    """The plan of a checked call. Without `max_tokens` the default counts, and without that the rest of the context;
    a program has defaults of its own. problems: one per prompt, for votes."""
    body, model, limits = call.body, call.model, call.state.limits
    layers = (call.request, call.preset, model.generation_defaults)
    runner = model.runner
    fields = sampling_fields(body, *layers, model.tokenizer)
    chain = resolve_sampling(fields, runner.vocab_size, runner.facts, call.request.keys())
    program = None if chain.program is None else PROGRAMS.get(chain.program.name)
    vote = call.vote
    if vote is None:
        n = n or (1 if program is None else program.default_n)
        made, named = best_of or n, "n"
    else:
        check_vote(vote, body, best_of, chain, model, call.state)
        n, made, named = 1, vote.samples, "voting.samples"
    if len(prompts) * made > limits.choices_per_request:
        refuse(f"prompts times choices may be at most {limits.choices_per_request}", named)
    if program is not None:
        default_max_tokens = program.default_max_tokens or default_max_tokens
        check_program(program, body, best_of, model)
    if body.logprob_token_ids and logprobs is None:
        refuse("'logprob_token_ids' needs 'logprobs'", "logprob_token_ids")
    if coverings is not None:
        check_boundary(body, chain, logprobs, prompt_logprobs)
    seed = secrets.randbits(64) - 2**63 if body.seed is None else body.seed
    stops = tuple(body.stop or ())
    traced = bool(body.return_sampler_trace)
    identity = f"{prefix}{secrets.token_hex(14)}"
    # top alternatives that have to be known, whoever reads them
    tops = [k for k in (logprobs, vote.top if vote is not None else None) if k is not None]
    # nobody sees a whole answer grow, or a vote's; what ends drawing has to be noticed when it appears
    awaited = bool(stops) or (bool(body.stream) if vote is None else _may_end(vote))
    requests = []
    for index, prompt in enumerate(prompts):
        budget = _token_budget(model, prompt, max_tokens, max_tokens_field, default_max_tokens)
        if (body.min_tokens or 0) > budget:
            refuse(f"'min_tokens' must not be larger than the {budget} tokens to generate", "min_tokens")
        if program is not None:
            asked = setting(chain, made, budget, body.min_tokens or 0, runner.facts)
            check_values(program, chain.program.values, asked, body.sampler)
        requests.append(
            DecodeRequest(
                id=f"{identity}-{index}",
                prompt_ids=tuple(prompt.ids),
                chain=chain,
                seed=seed,
                seeded=body.seed is not None,
                max_tokens=budget,
                n=made,
                min_tokens=body.min_tokens or 0,
                eos_token_ids=frozenset() if body.ignore_eos else model.eos_token_ids,
                stop_token_ids=frozenset(body.stop_token_ids or ()),
                stops=() if program is None else tuple(stop.encode() for stop in stops),
                special_tokens_are_text=body.skip_special_tokens is False,
                logprobs=max(tops, default=None),
                prompt_logprobs=prompt_logprobs,
                processed_logprobs=body.logprobs_mode == "processed",
                logprob_token_ids=tuple(body.logprob_token_ids or ()),
                compared=vote is not None or best_of is not None,
                trace=CANDIDATES if traced else None,
                priority=body.priority or 0,
                cache_salt=body.cache_salt or "",
                session=body.prompt_cache_key or "",
                delivery_interval_s=0.0 if awaited else WHOLE_ANSWER_INTERVAL_S,
                tenant=call.tenant,
            )
        )
    follows_seed = all(map(runner.follows_seed, requests))
    speculation = _speculation(call, chain, max_tokens, follows_seed)
    if isinstance(speculation, SpecRequest):
        requests = [replace(request, speculation=speculation) for request in requests]
    if traced:
        _check_traced(sum(request.max_tokens for request in requests) * made, limits)
    covered = None if coverings is None else tuple(coverings)
    options = TextOptions(
        stops=stops,
        include_stop=bool(body.include_stop_str_in_output or body.no_stop_trim),
        skip_special=body.skip_special_tokens is not False,
        echoed=echo,
        interval=body.stream_interval if body.stream else None,
        listed=logprobs is not None,
        keep_scores=vote is not None and vote.top is not None,
    )
    election = None
    if vote is not None:
        flags = flags_of(vote, body, chain)
        election = Election(vote, problems, call.state, model, flags, whole=options.interval is None)
    if isinstance(speculation, Plain) and speculation.fallback_reason is not None:
        call.state.metrics.spec_fallbacks.labels(speculation.fallback_reason).inc()
    stream_options = body.stream_options
    return Plan(
        id=identity,
        created=int(time.time()),
        model=body.model,
        fingerprint=model.fingerprint,
        served=model,
        job=Job(model, tuple(requests), options, made, call.arrived, limits.prompts_in_flight, covered, election),
        prompts=tuple(prompts),
        chain=chain,
        sampler_report=chain.report(fields_below(call.preset, model.generation_defaults)),
        speculation=speculation,
        seed=seed if follows_seed else None,
        n=n,
        stream=bool(body.stream),
        traced=traced,
        boundary=None if covered is None else boundary_report(body.prompt_boundary, covered),
        include_usage=bool(stream_options and stream_options.include_usage),
        continuous_usage=bool(stream_options and stream_options.continuous_usage_stats),
    )


def _speculation(call: Call[Any], chain: Chain, max_tokens: int | None, follows_seed: bool) -> SpecRequest | Plain:
    """How the choices are drafted for, checked even where there is nothing to generate. Raises SamplerError."""
    body, runner = call.body, call.model.runner
    lossless = call.state.limits.require_lossless
    standing = SpecFacts(runner.offer, call.tenant is not None, lossless, follows_seed=follows_seed)
    excluded = "return_sampler_trace" if body.return_sampler_trace else ""
    found = read_speculation(body.spec_decode, standing, chain, seeded=body.seed is not None, excluded=excluded)
    return Plain() if max_tokens == 0 else found


def _may_end(vote: VoteRequest) -> bool:
    """Whether a vote may be decided before all samples are drawn."""
    return not vote.stop.never_fires or vote.rule.drawing(vote.values) is Drawing.SCREENED


def _check_traced(tokens: int, limits: Limits) -> None:
    if tokens > limits.traced_tokens:
        refuse(
            f"'return_sampler_trace' allows {limits.traced_tokens} tokens (prompts times choices times 'max_tokens'), "
            f"this request may have {tokens}",
            "return_sampler_trace",
        )


def _token_budget(
    model: ServedModel, prompt: PromptInput, wanted: int | None, wanted_field: str, default: int | None
) -> int:
    """How many tokens to generate at most; the prompt and they fit into the context."""
    limit, length = model.runner.max_model_len, len(prompt.ids)
    if length > limit or (length == limit and wanted != 0):
        raise too_long(
            f"the prompt has {length} tokens; the context of {limit} leaves no room to generate", prompt.param
        )
    room = limit - length
    if wanted is None:
        return room if default is None else min(default, room)
    if wanted > room:
        raise too_long(
            f"the prompt has {length} tokens and '{wanted_field}' asks for {wanted}; the context has {limit}",
            wanted_field,
        )
    return wanted
