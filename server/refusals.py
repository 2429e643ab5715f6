"""Fields the interface defines and this build cannot honour: each is a 400 that names it.

Nothing that would change what is generated is ever accepted and then ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import bad_request, check_ids, refuse, unavailable
from server.schema.analysis import StepsBody
from server.schema.chat import ChatBody
from server.schema.common import PASSED_SAMPLING, GenerationBody
from server.schema.completions import CompletionBody
from server.schema.fields import Body
from server.schema.votes import ChatVoteBody, CompletionVoteBody, SamplesVoteBody

STRUCTURED = (
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "guided_whitespace_pattern", "regex", "ebnf", "json_schema",
)  # fmt: skip
BACKENDS = ("auto", "xgrammar", "guidance", "llguidance", "outlines", "lm-format-enforcer")

# name -> what is missing; null and false ask for nothing
UNAVAILABLE = {
    "thinking_token_budget": "a thinking budget is",
    "custom_logit_processor": "code sent by clients is never executed; it is",
    "lora_path": "name an adapter by its model id; adapter paths are",
    "return_hidden_states": "returning hidden states is",
    "prompt_embeds": "prompts as embeddings are",
    "parallel_segments": "parallel segments are",
    "retrieval": "retrieval is",
    "routing": "routing is",
    "experiment": "experiments are",
    "audio": "audio is",
    "web_search_options": "web search is",
    "functions": "function calling is",
    "function_call": "function calling is",
}
HANDLED = (*STRUCTURED, "guided_decoding_backend", *UNAVAILABLE)


# fields of one endpoint that mean nothing on the other: a limit or a tool that does not apply is no answer to a request
_NO_EFFECT_ANYWHERE = {"parallel_tool_calls", "include_reasoning", "separate_reasoning"}
_CHAT = ChatBody.model_fields.keys() - _NO_EFFECT_ANYWHERE
_COMPLETION = set(CompletionBody.model_fields)
_VOTES = {"code", "samples_data"}
_ALL = {*_CHAT, *_COMPLETION, *_VOTES, *PASSED_SAMPLING, *HANDLED} - {"store"}  # what generates nothing adds nothing
# names and whose they are
_FOREIGN: Mapping[type[Body], Sequence[tuple[set[str], str]]] = {
    ChatBody: ((_COMPLETION - _CHAT, "/v1/completions"), (_VOTES, "/v1/votes")),
    CompletionBody: ((_CHAT - _COMPLETION, "/v1/chat/completions"), (_VOTES, "/v1/votes")),
    StepsBody: ((_ALL - set(StepsBody.model_fields), "other endpoints"),),
    ChatVoteBody: ((_COMPLETION - _CHAT, "votes on a 'prompt'"),),
    CompletionVoteBody: ((_CHAT - _COMPLETION, "votes on 'messages'"),),
    SamplesVoteBody: ((_ALL - set(SamplesVoteBody.model_fields), "votes that draw their samples"),),
}
_ASKS_FOR_NOTHING: tuple[Any, ...] = (None, False, "none", ["text"])


def refuse_foreign(fields: Mapping[str, Any], kind: type[Body]) -> None:
    """Check a body as sent for fields that belong to another endpoint."""
    homes = {name: home for names, home in _FOREIGN.get(kind, ()) for name in names}
    for name in fields:
        if name in homes and not any(fields[name] is one or fields[name] == one for one in _ASKS_FOR_NOTHING):
            refuse(f"'{name}' is a field of {homes[name]}", name)


def refuse_unavailable(fields: Mapping[str, Any]) -> None:
    """Check a merged body for names whose feature is missing."""
    for name in STRUCTURED:
        if fields.get(name) is not None:
            raise unavailable(name, "structured output is")
    backend = fields.get("guided_decoding_backend")
    if backend is not None and backend not in BACKENDS:
        raise bad_request(f"unknown 'guided_decoding_backend'; known: {', '.join(BACKENDS)}", "guided_decoding_backend")
    for name, what in UNAVAILABLE.items():
        if fields.get(name) is not None and fields[name] is not False:
            raise unavailable(name, what)


def check_common(body: GenerationBody, vocab_size: int) -> None:
    """Fields whose legal values go further than what this build or the model can do."""
    for name in ("stop_token_ids", "logprob_token_ids"):
        check_ids(getattr(body, name) or (), name, vocab_size)
    if body.max_tokens is not None and (body.min_tokens or 0) > body.max_tokens:
        refuse(f"'min_tokens' must not be larger than the {body.max_tokens} tokens to generate", "min_tokens")
    if body.response_format is not None:
        match body.response_format.type:
            case "text":
                pass
            case "json_schema" if body.response_format.json_schema is None:
                refuse("'response_format.json_schema' is missing", "response_format.json_schema")
            case "json_object" | "json_schema":
                raise unavailable("response_format", "structured output is")
            case _:
                refuse("'response_format.type' must be text, json_object or json_schema", "response_format.type")
    if body.stream_options is not None and not body.stream:
        refuse("'stream_options' is only allowed when 'stream' is true", "stream_options")
    if body.prompt_logprobs is not None and body.stream:
        refuse("'prompt_logprobs' is not available when 'stream' is true", "prompt_logprobs")
