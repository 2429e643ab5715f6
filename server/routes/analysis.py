"""POST /v1/analysis/steps."""

from __future__ import annotations

import asyncio
import secrets
import time
from itertools import accumulate
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from engine.runners.base import Capability
from server.answers.fold import usage
from server.boundary import suggest_request_id
from server.disconnect import while_connected
from server.document import operation
from server.errors import refuse
from server.generate import Tokens
from server.jsontext import dumps
from server.offload import offload
from server.presets import merged
from server.prompts import analysed_prompt
from server.refusals import refuse_foreign
from server.routes.common import state_of
from server.runner_limits import unsupported
from server.schema.analysis import RegexSegment, StepsBody
from server.schema.chat import ConversationBody
from server.schema.common import INERT
from server.schema.parse import log_unknown, read_body_as, refuse_look_alikes, validate
from server.state import ServedModel, ServerState
from server.step_analysis import Analysis, analyse, check_length, derivation
from voting.step_importance import Derivation
from voting.step_kinds import kind_of
from voting.steps import segmented

router = APIRouter()
KNOWN = (*StepsBody.model_fields, *INERT)
_OF_MESSAGES = ConversationBody.model_fields.keys() - {"messages", "add_special_tokens"}


@router.post("/v1/analysis/steps", **operation("How much each step of a reasoning adds", 404, body=StepsBody))
async def steps(request: Request) -> Response:
    """Importance of every step for the probability of the answer, under the raw model."""
    state = state_of(request)

    def prepare(raw: dict[str, Any]) -> dict[str, Any]:
        suggest_request_id(request, raw.get("request_id") or raw.get("rid"))
        refuse_foreign(raw, StepsBody)
        refuse_look_alikes(raw, KNOWN)
        return raw

    raw, body = await read_body_as(request, state.limits.body_bytes, StepsBody, prepare)
    log_unknown(raw, KNOWN, state.logged_names)
    model, preset = state.find(body.model)
    if preset is not None:  # little of it applies: nothing is drawn
        body = validate(StepsBody, merged(raw, model.presets[preset]))
    _check(body, model)
    identity = f"steps-{secrets.token_hex(14)}"
    texts, whole, found = await while_connected(request.receive, _analyse(state, model, body, identity))

    def content() -> bytes:
        head = {"id": identity, "object": "analysis.steps", "created": int(time.time()), "model": body.model}
        return dumps(head | {"system_fingerprint": model.fingerprint} | _answer(body, texts, whole, found))

    return Response(await offload(sum(map(len, texts)), content), media_type="application/json")


async def _analyse(
    state: ServerState, model: ServedModel, body: StepsBody, identity: str
) -> tuple[list[str], Derivation, Analysis]:
    """(the steps, everything as tokens, what was found)."""
    source = "steps" if body.reasoning is None else "reasoning"
    check_length(model, "".join(body.steps or ()) if body.reasoning is None else body.reasoning, source)
    check_length(model, body.answer, "answer")
    texts = await _texts(body)
    if body.kinds is not None and len(body.kinds) != len(texts):
        refuse(f"'kinds' has {len(body.kinds)} items for {len(texts)} steps", "kinds")
    prompt = await analysed_prompt(model, body, state.limits, model.runner.max_model_len)
    whole = await derivation(model, prompt, texts, body.answer, source)
    found = await analyse(
        model,
        whole,
        body.normalise or "token",
        identity=identity,
        prompts_in_flight=state.limits.prompts_in_flight,
        cache_salt=body.cache_salt or "",
        priority=body.priority or 0,
    )
    return texts, whole, found


def _check(body: StepsBody, model: ServedModel) -> None:
    """Rules between fields, and what the runner has to be able to do."""
    if Capability.PROMPT_LOGPROBS not in model.runner.capabilities:
        raise unsupported("model", "log-probabilities of prompts are", model.runner)
    if (body.prompt is None) == (body.messages is None):
        refuse("exactly one of 'prompt' and 'messages' is needed", "prompt")
    if (body.reasoning is None) == (body.steps is None):
        refuse("exactly one of 'reasoning' and 'steps' is needed", "reasoning")
    if body.segment is not None and body.reasoning is None:
        refuse("'segment' needs 'reasoning': 'steps' are steps already", "segment")
    for name in sorted(_OF_MESSAGES):
        if body.messages is None and getattr(body, name) is not None:
            refuse(f"'{name}' needs 'messages'", name)


async def _texts(body: StepsBody) -> list[str]:
    """The steps, which together are the reasoning."""
    if body.reasoning is None:
        return body.steps or []
    segment = {"regex": body.segment.regex} if isinstance(body.segment, RegexSegment) else body.segment
    return await asyncio.to_thread(segmented, body.reasoning, segment or "blank_line")  # a regex may take its time


def _answer(body: StepsBody, texts: list[str], whole: Derivation, found: Analysis) -> dict[str, Any]:
    """The numbers, and what they are about."""
    result = found.importances
    starts = accumulate(map(len, texts), initial=0)
    kinds = body.kinds or map(kind_of, texts)
    columns = zip(starts, texts, whole.steps, result.importance, result.nll_without, kinds, strict=False)
    return {
        "normalise": body.normalise or "token",
        "base_nll": result.base_nll,
        "n_answer_tokens": len(whole.answer),
        "steps": [
            {
                "index": index,
                "text": text,
                "start": start,
                "end": start + len(text),
                "n_tokens": len(ids),
                "importance": importance,
                "nll_without": nll_without,
                "kind": kind,
            }
            for index, (start, text, ids, importance, nll_without, kind) in enumerate(columns)
        ],
        "usage": usage(Tokens(found.prompt_tokens), found.cached_tokens),
    }
