"""Presets: named request fields behind `model@preset`, and how they combine with what the request itself says.

Precedence: request field > preset > a method's own default > the model's generation config.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from samplers.chain import Chain, resolve
from samplers.contract import SamplerError
from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.programs.contract import PROGRAMS
from samplers.registry import DRAWS, STAGES
from server.errors import ApiError, bad_request
from server.programs import check_values, setting
from server.refusals import HANDLED, check_common, refuse_unavailable
from server.schema.chat import ChatBody
from server.schema.common import CHECKED_SAMPLING, PASSED_SAMPLING, GenerationBody
from server.schema.completions import CompletionBody
from server.schema.parse import validate
from server.speculation import read_speculation
from server.state import Limits, ServedModel, ServerState
from server.text.codec import TextCodec
from server.votes.request import read_vote
from spec_decode.facts import SpecFacts

log = logging.getLogger(__name__)
NOT_PRESETTABLE = {
    "model", "stream", "stream_options", "request_id", "rid", "user", "vllm_xargs", "cache_salt",
    "prompt_cache_key", "return_sampler_trace",
}  # fmt: skip
NO_SPECULATION = SpecFacts()
Presets = Mapping[str, Mapping[str, Any]]  # name -> request fields
GENERATION_CONFIG = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class PresetError(ValueError):
    """A preset would fail every request that names it; the message says which one and why."""


def usable_presets(model: ServedModel, state: ServerState, presets: Presets) -> dict[str, Mapping[str, Any]]:
    """Those that some request to this model could use."""
    usable = {}
    for name, fields in presets.items():
        try:
            check_presets_of(model, state, {name: fields})
        except PresetError as error:
            log.info("%s is served without %s", model.id, error)
        else:
            usable[name] = fields
    return usable


def check_presets_of(model: ServedModel, state: ServerState, presets: Presets) -> None:
    """`check_presets` with all that is known about a model and its server."""
    runner, limits = model.runner, state.limits
    check_presets(
        presets,
        model.tokenizer,
        runner.vocab_size,
        runner.max_model_len,
        runner.facts,
        limits.max_k,
        SpecFacts(runner.offer, limits.past_outputs and bool(state.api_keys), limits.require_lossless),
    )


def check_presets(
    presets: Presets,
    codec: TextCodec,
    vocab_size: int,
    max_model_len: int,
    facts: ModelFacts = NO_FACTS,
    max_k: int = Limits.max_k,
    speculation: SpecFacts = NO_SPECULATION,
) -> None:
    """Refuse at start what no request could use. speculation: before requests' own fields. Raises PresetError."""
    names = set(GenerationBody.model_fields) - NOT_PRESETTABLE | set(PASSED_SAMPLING)
    for name, fields in presets.items():
        where = f"preset '{name}'"
        if not name or "@" in name or not name.isprintable():
            raise PresetError(f"{where}: the name must be printable and without '@'")
        if not isinstance(fields, Mapping):
            raise PresetError(f"{where}: must be a mapping of request fields")
        if unknown := [key for key in fields if key not in names and key not in HANDLED]:
            raise PresetError(f"{where}: unknown or not allowed in a preset: {', '.join(map(str, unknown))}")
        try:
            body = _body_of_any_endpoint(fields)
            refuse_unavailable(fields)
            if body.voting is not None:
                read_vote(body.voting, max_k)
            check_common(body, vocab_size)
            if (body.max_tokens or 0) >= max_model_len:
                raise bad_request(f"'max_tokens' must be below the context of {max_model_len}")
            chain = resolve_sampling(sampling_fields(body, {}, fields, {}, codec), vocab_size, facts, ())
            _check_program(chain, body, max_model_len, facts)
            read_speculation(body.spec_decode, speculation, chain, seeded=body.seed is not None)
        except (ApiError, SamplerError) as error:
            raise PresetError(f"{where}: {error}") from error


def _check_program(chain: Chain, body: GenerationBody, max_model_len: int, facts: ModelFacts) -> None:
    """What the program of a preset has against a request that says nothing itself. Raises SamplerError."""
    if chain.program is not None:
        program = PROGRAMS.get(chain.program.name)
        n, longest = body.n or program.default_n, body.max_tokens or program.default_max_tokens or max_model_len - 1
        asked = setting(chain, n, longest, body.min_tokens or 0, facts)
        check_values(program, chain.program.values, asked, body.sampler)


def _body_of_any_endpoint(fields: Mapping[str, Any]) -> GenerationBody:
    """The preset alone as a request. Raises ApiError when it fits neither endpoint."""
    try:
        return validate(ChatBody, {"model": "", "messages": [{"role": "user", "content": ""}], **fields})
    except ApiError:
        return validate(CompletionBody, {"model": "", "prompt": "", **fields})


def merged(request: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """One body of both."""
    return {**preset, **{name: value for name, value in request.items() if _is_given(name, value)}}


def sampling_fields(
    body: GenerationBody,
    request: Mapping[str, Any],
    preset: Mapping[str, Any],
    defaults: Mapping[str, Any],
    codec: TextCodec,
) -> dict[str, Any]:
    """What `resolve` gets. `body` is the checked form of both layers merged, `defaults` the generation config."""
    values = {name: value for name in CHECKED_SAMPLING if (value := getattr(body, name)) is not None}
    both = merged(request, preset)
    values |= {name: both[name] for name in PASSED_SAMPLING if both.get(name) is not None}
    if body.bad_words is not None:
        values["bad_words_ids"] = bad_word_ids(values.pop("bad_words"), codec)
    if body.use_beam_search:
        others = _items(values.get("sampler"))
        if any(_name(item) in PROGRAMS for item in others):
            raise SamplerError("'use_beam_search' excludes a program in 'sampler'", "use_beam_search")
        values["sampler"] = [*others, beam_item(body)]
        if values.get("temperature") == 0:  # what clients of other servers send with it
            del values["temperature"]
    fallbacks = {name: defaults[name] for name in GENERATION_CONFIG if defaults.get(name) is not None}
    if defaults.get("do_sample") is False:
        fallbacks["temperature"] = 0.0
    if any(_name(item) in PROGRAMS for item in _items(values.get("sampler"))):
        fallbacks.clear()  # how a model likes to be sampled says nothing about how it is searched
    own = {name for name, value in request.items() if _is_given(name, value)}
    if "bad_words" in own:
        own.add("bad_words_ids")
    if "sampler" in values and "sampler" not in own:
        items = [item for item in _items(values["sampler"]) if not ("draw" in own and "draw" in _fields(item))]
        values["sampler"] = [_overridden(item, values, own) for item in items]
    spoken_for = {field for item in _items(values.get("sampler")) for field in _fields(item)}
    if "sampler" in own:  # the request's chain replaces what the preset says about the same stages
        values = {name: value for name, value in values.items() if name in own or name not in spoken_for}
    return {**{name: value for name, value in fallbacks.items() if name not in spoken_for}, **values}


def beam_item(body: GenerationBody) -> dict[str, Any]:
    """The program behind `use_beam_search`: as many beams as choices. Raises SamplerError."""
    params = {param.name: param for param in PROGRAMS.get("beam").params}
    item: dict[str, Any] = {"name": "beam", "beam_width": params["beam_width"].check(body.n or 1, "n")}
    if body.length_penalty is not None:
        item["length_penalty"] = params["length_penalty"].check(body.length_penalty, "length_penalty")
    return item


def fields_below(preset: Mapping[str, Any], defaults: Mapping[str, Any]) -> set[str]:
    """Flat names of everything that something other than the request itself sets."""
    listed = {field for item in _items(preset.get("sampler")) for field in _fields(item)}
    return {*preset, *(name for name in GENERATION_CONFIG if name in defaults), *listed}


def resolve_sampling(fields: Mapping[str, Any], vocab_size: int, model: ModelFacts, own: Collection[str]) -> Chain:
    """`resolve`, with numbers beyond every range refused like any other."""
    try:
        return resolve(fields, vocab_size, model, own)
    except OverflowError:
        raise SamplerError("'sampler' contains a number out of range", "sampler") from None


def bad_word_ids(words: Iterable[str], codec: TextCodec) -> list[list[int]]:
    """Token sequences of each word, at the start of a text and after a space."""
    sequences = {tuple(codec.encode_plain(form)) for word in words for form in (word, " " + word.lstrip())}
    return [list(sequence) for sequence in sorted(sequences) if sequence]


def _is_given(name: str, value: Any) -> bool:
    """Null means absent, and so does a chain without items."""
    return value is not None and not (name == "sampler" and value == [])


def _items(sampler: Any) -> list[Any]:
    return sampler if isinstance(sampler, list) else [] if sampler is None else [sampler]


def _fields(item: Any) -> set[str]:
    """Flat names of what a chain's item speaks for."""
    name = _name(item)
    if not (name in STAGES or name in DRAWS):
        return set()
    if name in DRAWS:
        return {"draw"} | {param.name for param in DRAWS.get(name).params}
    stage = STAGES.get(name)
    return {param.name for param in stage.params} | set(stage.structured)


def _name(item: Any) -> Any:
    name = item.get("name") if isinstance(item, Mapping) else item
    return name if isinstance(name, str) else None


def _overridden(item: Any, values: Mapping[str, Any], own: set[str]) -> Any:
    """A preset's item with what the request sets by flat name."""
    fields = _fields(item) & own
    if not fields:
        return item
    return {**({"name": item} if isinstance(item, str) else item), **{name: values[name] for name in fields}}
