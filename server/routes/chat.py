"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.answers.chat import ChatAnswer
from server.answers.logprobs import TokenNames
from server.document import generation_operation
from server.errors import refuse
from server.plan import Call, make_plan, read_call
from server.prompt_boundary import cover_prompts
from server.prompts import chat_prompt, truncation
from server.routes.common import respond, state_of
from server.schema.chat import ChatBody
from server.votes.prompting import chat_problem, instructed_chat

router = APIRouter()


@router.post("/v1/chat/completions", **generation_operation(ChatBody, "Answer a conversation"))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    call = await read_call(request, state_of(request), ChatBody)
    return await respond(request, await chat_answer(call))


async def chat_answer(call: Call[ChatBody]) -> ChatAnswer:
    """What a checked call is answered with, once its plan has been run."""
    state, body, model = call.state, call.body, call.model
    _check(body)
    named = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    cut = truncation(body, model, wanted)
    shown = body if call.vote is None else instructed_chat(body, call.vote)
    prompt = await chat_prompt(model, shown, state.limits, model.runner.max_model_len, cut)
    top = (body.top_logprobs or 0) if body.logprobs else None
    default = model.generation_defaults.get("max_new_tokens")
    plan = make_plan(
        call,
        "chatcmpl-",
        [prompt],
        max_tokens=wanted,
        max_tokens_field=named,
        default_max_tokens=default,
        logprobs=top,
        prompt_logprobs=body.prompt_logprobs,
        n=body.n,
        coverings=await cover_prompts(
            model, body.prompt_boundary, [prompt], open_end=bool(body.continue_final_message)
        ),
        problems=[] if call.vote is None else [chat_problem(model, body, state.limits)],
    )
    last = body.messages[-1]
    return ChatAnswer(
        plan=plan,
        names=TokenNames(model.tokenizer, bool(body.return_tokens_as_token_ids)),
        top=top,
        prompt_top=body.prompt_logprobs,
        token_ids=bool(body.return_token_ids),
        prefix=(last.text() or "") if body.echo and last.role == "assistant" else "",
    )


def _check(body: ChatBody) -> None:
    """Rules between fields of a chat."""
    if body.top_logprobs is not None and not body.logprobs:
        refuse("'top_logprobs' needs 'logprobs': true", "top_logprobs")
    if body.modalities is not None and body.modalities != ["text"]:
        refuse("'modalities' must be [\"text\"]", "modalities")
    if body.tools is None and body.tool_choice not in (None, "none"):
        refuse("'tool_choice' is only allowed with 'tools'", "tool_choice")
