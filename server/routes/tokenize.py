"""/tokenize, /detokenize and /tokenizer_info, at the root and under /v1."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.document import operation
from server.errors import check_ids, refuse
from server.offload import offload
from server.prompts import render
from server.routes.common import json_response, state_of
from server.schema.parse import log_unknown, read_body_as
from server.schema.tokenize import DetokenizeBody, TokenizeBody
from server.state import ServedModel, ServerState

router = APIRouter()


@router.post("/v1/tokenize", **operation("Text or messages to token ids", 404, body=TokenizeBody))
@router.post("/tokenize", **operation("Text or messages to token ids", 404, body=TokenizeBody))
async def tokenize(request: Request) -> Response:
    """Ids of a prompt, or of the prompt a conversation becomes."""
    state = state_of(request)
    raw, body = await read_body_as(request, state.limits.body_bytes, TokenizeBody)
    log_unknown(raw, TokenizeBody.model_fields, state.logged_names)
    model = _model(state, body.model)
    if (body.prompt is None) == (body.messages is None):
        refuse("exactly one of 'prompt' and 'messages' is needed", "prompt")
    if body.prompt is not None:
        text, special = body.prompt, body.add_special_tokens is not False
    else:
        text, special = await render(model, body, state.limits), bool(body.add_special_tokens)
    ids = (await model.tokenizer.encode(text, special)).ids
    answer = {"tokens": ids, "count": len(ids), "max_model_len": model.runner.max_model_len}
    if body.return_token_strs:
        answer["token_strs"] = await offload(len(ids), model.tokenizer.token_strings, ids)
    return json_response(answer)


@router.post("/v1/detokenize", **operation("Token ids to text", 404, body=DetokenizeBody))
@router.post("/detokenize", **operation("Token ids to text", 404, body=DetokenizeBody))
async def detokenize(request: Request) -> Response:
    """The text of ids, special tokens included."""
    state = state_of(request)
    raw, body = await read_body_as(request, state.limits.body_bytes, DetokenizeBody)
    log_unknown(raw, DetokenizeBody.model_fields, state.logged_names)
    model = _model(state, body.model)
    check_ids(body.tokens, "tokens", model.runner.vocab_size)
    return json_response({"prompt": await offload(len(body.tokens), model.tokenizer.decode, body.tokens)})


@router.get("/v1/tokenizer_info", **operation("Special tokens and chat template", 404))
@router.get("/tokenizer_info", **operation("Special tokens and chat template", 404))
async def tokenizer_info(request: Request) -> Response:
    """What a client needs to build prompts itself; `?model=` names one, default the first."""
    model = _model(state_of(request), request.query_params.get("model"))
    return json_response(model.tokenizer.info() | {"max_model_len": model.runner.max_model_len})


def _model(state: ServerState, name: str | None) -> ServedModel:
    return state.models[0] if name is None else state.find(name)[0]
