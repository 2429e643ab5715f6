"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.answers.completions import CompletionAnswer
from server.answers.logprobs import TokenNames
from server.document import generation_operation
from server.errors import refuse, unavailable
from server.plan import Call, make_plan, read_call
from server.prompt_boundary import cover_prompts
from server.prompts import completion_prompts, truncation
from server.routes.common import respond, state_of
from server.schema.completions import CompletionBody
from server.state import Limits
from server.votes.prompting import completion_problems, instructed_completion

router = APIRouter()
DEFAULT_MAX_TOKENS = 16


@router.post("/v1/completions", **generation_operation(CompletionBody, "Continue one or several prompts"))
async def completions(request: Request) -> Response:
    """Continue one or several prompts."""
    call = await read_call(request, state_of(request), CompletionBody)
    return await respond(request, await completion_answer(call))


async def completion_answer(call: Call[CompletionBody]) -> CompletionAnswer:
    """What a checked call is answered with, once its plan has been run."""
    state, body, model = call.state, call.body, call.model
    _check(body, state.limits)
    echo = bool(body.echo)
    shown = body if call.vote is None else instructed_completion(body, call.vote)
    prompts = await completion_prompts(
        model, shown, model.runner.max_model_len, truncation(body, model, body.max_tokens or DEFAULT_MAX_TOKENS)
    )
    # an echo with logprobs lists the prompt's tokens as well
    scored = [k for k in (body.prompt_logprobs, body.logprobs if echo else None) if k is not None]
    plan = make_plan(
        call,
        "cmpl-",
        prompts,
        max_tokens=body.max_tokens,
        max_tokens_field="max_tokens",
        default_max_tokens=DEFAULT_MAX_TOKENS,
        logprobs=body.logprobs,
        prompt_logprobs=max(scored, default=None),
        n=body.n,
        best_of=body.best_of,
        echo=echo,
        # without a token to generate nothing depends on how the prompt's end is written
        coverings=await cover_prompts(model, body.prompt_boundary if body.max_tokens != 0 else None, prompts),
        problems=[] if call.vote is None else completion_problems(model, body, prompts),
    )
    return CompletionAnswer(
        plan=plan,
        names=TokenNames(model.tokenizer, bool(body.return_tokens_as_token_ids)),
        top=body.logprobs,
        prompt_top=body.prompt_logprobs,
        token_ids=bool(body.return_token_ids),
        echo=echo,
    )


def _check(body: CompletionBody, limits: Limits) -> None:
    """Rules between fields of a completion."""
    prompts = body.prompt if isinstance(body.prompt, list) and not isinstance(body.prompt[0], int) else [body.prompt]
    choices = len(prompts) * (body.best_of or body.n or 1)
    if choices > limits.choices_per_request:
        refuse(f"prompts times choices may be at most {limits.choices_per_request}", "prompt")
    if body.echo and body.logprobs is not None:
        listed = sum(map(len, prompts)) * (body.n or 1)  # characters stand for tokens: never fewer
        if listed > limits.echoed_tokens:
            refuse(f"prompt tokens times choices may be at most {limits.echoed_tokens} with their logprobs", "n")
    if body.max_tokens == 0 and not body.echo:
        refuse("'max_tokens' may be 0 only with 'echo'", "max_tokens")
    if body.suffix is not None:
        raise unavailable("suffix", "the model declares no fill-in-the-middle template; a suffix is")
    if body.best_of is not None:
        if body.best_of < (body.n or 1):
            refuse("'best_of' must not be smaller than 'n'", "best_of")
        if body.stream:
            refuse("'best_of' excludes 'stream'", "best_of")
        if body.echo:
            refuse("'best_of' excludes 'echo'", "best_of")
