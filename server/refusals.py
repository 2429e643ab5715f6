"""Fields the interface defines and this build cannot honour: each is a 400 that names it.

Nothing that would change what is generated is ever accepted and then ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.errors import bad_request, refuse, unavailable
from server.schema.common import GenerationBody

STRUCTURED = (
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "guided_whitespace_pattern", "regex", "ebnf", "json_schema",
)  # fmt: skip
BACKENDS = ("auto", "xgrammar", "guidance", "llguidance", "outlines", "lm-format-enforcer")

# name -> what is missing; null and false ask for nothing
UNAVAILABLE = {
    "voting": "voting is",
    "use_beam_search": "beam search is",
    "thinking_token_budget": "a thinking budget is",
    "custom_logit_processor": "code sent by clients is never executed; it is",
    "lora_path": "name an adapter by its model id; adapter paths are",
    "return_hidden_states": "returning hidden states is",
    "prompt_embeds": "prompts as embeddings are",
    "prompt_boundary": "boundary handling is",
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


def refuse_unavailable(fields: Mapping[str, Any]) -> None:
    """Check a merged body for names whose feature is missing."""
    for name in STRUCTURED:
        if fields.get(name) is not None:
            raise unavailable(name, "structured output is")
    backend = fields.get("guided_decoding_backend")
    if backend is not None and backend not in BACKENDS:
        raise bad_request(
            f"unknown 'guided_decoding_backend'; known: {', '.join(BACKENDS)}", "guided_decoding_backend"
        )
    for name, what in UNAVAILABLE.items():
        if fields.get(name) not in (None, False):
            raise unavailable(name, what)


def check_common(body: GenerationBody) -> None:
    """Fields whose legal values go further than what this build can do."""
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
    match body.spec_decode:
        case None | False | "auto":
            pass
        case True:
            refuse("'spec_decode' must be false, \"auto\" or an object", "spec_decode")
        case dict():
            raise unavailable("spec_decode", "the model has no draft: speculative decoding is")
        case _:
            refuse("'spec_decode' must be false, \"auto\" or an object", "spec_decode")
    if body.stream_options is not None and not body.stream:
        refuse("'stream_options' is only allowed when 'stream' is true", "stream_options")
    if body.prompt_logprobs is not None and body.stream:
        refuse("'prompt_logprobs' is not available when 'stream' is true", "prompt_logprobs")
