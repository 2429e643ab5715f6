"""Fields shared by chat and text completions, as openai_api.md sections 2, 4.1 and 11 list them.

Absent and null are the same and become None. What each field does is decided in `server.plan`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from samplers.chain import flat_names
from server.schema.fields import (
    REAL,
    WHOLE,
    Body,
    Count,
    Cut,
    Flag,
    Int,
    Int64,
    Number,
    Priority,
    RequestId,
    Salt,
    Stops,
    Text,
    TokenId,
    TokenKey,
)

# Scalars and objects that `samplers.chain.resolve` reads. Those without a field of their own below are passed on
# unchecked, and refused there while no sampler of that name exists.
CHECKED_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logit_bias", "allowed_token_ids", "bad_words", "sampler", "sampler_order", "temperature_last",
)  # fmt: skip
# parameters of samplers that this build does not have: refused by name, never ignored
_RESERVED_SAMPLING = ("knn", "ngram_mix", "trie_scope")
PASSED_SAMPLING = (
    "draw", *sorted(flat_names() - {*CHECKED_SAMPLING, "bad_words_ids"}), *_RESERVED_SAMPLING,
)  # fmt: skip


# no effect on what is generated, and nothing to log
INERT = (
    "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "verbosity", "prediction", "moderation",
)  # fmt: skip


class StreamOptions(Body):
    include_usage: Flag | None = None
    continuous_usage_stats: Flag | None = None
    include_obfuscation: Flag | None = None


class ResponseFormat(Body):
    type: Text
    json_schema: dict[str, Any] | None = None


class GenerationBody(Body):
    """Everything both endpoints accept."""

    model: Text
    max_tokens: Int | None = None
    temperature: Annotated[float, Field(ge=0, le=100), REAL] | None = None
    top_p: Annotated[float, Field(gt=0, le=1), REAL] | None = None
    n: Annotated[int, Field(ge=1, le=128), WHOLE] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2), REAL] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2), REAL] | None = None
    logit_bias: dict[TokenKey, Annotated[float, Field(ge=-100, le=100), REAL]] | None = None
    seed: Int64 | None = None
    stop: Stops = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: Text | None = None
    store: Flag | None = None

    # sampling and output control under the names of other servers
    top_k: Annotated[int, Field(ge=-1), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0, le=1), REAL] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10), REAL] | None = None
    min_tokens: Annotated[int, Field(ge=0), WHOLE] | None = None
    ignore_eos: Flag | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024)] | None = None
    include_stop_str_in_output: Flag | None = None
    no_stop_trim: Flag | None = None
    skip_special_tokens: Flag | None = None
    spaces_between_special_tokens: Flag | None = None
    truncate_prompt_tokens: Cut | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    logprob_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    bad_words: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(max_length=256)] | None = None
    add_special_tokens: Flag | None = None
    request_id: RequestId | None = None
    rid: RequestId | None = None
    return_token_ids: Flag | None = None
    return_tokens_as_token_ids: Flag | None = None
    return_sampler_trace: Flag | None = None
    stream_interval: Count | None = None
    priority: Priority | None = None
    cache_salt: Salt | None = None
    prompt_cache_key: Text | None = None
    vllm_xargs: dict[Text, Any] | None = None
    use_beam_search: Flag | None = None
    length_penalty: Number | None = None

    # how to decode
    sampler: Text | dict[Text, Any] | list[Text | dict[Text, Any]] | None = None
    sampler_order: Literal["fixed", "given"] | None = None
    temperature_last: Flag | None = None
    spec_decode: Flag | Text | dict[Text, Any] | None = None
    voting: dict[Text, Any] | None = None
    logprobs_mode: Literal["raw", "processed"] | None = None
    prompt_boundary: Literal["off", "heal", "exact"] | None = None
