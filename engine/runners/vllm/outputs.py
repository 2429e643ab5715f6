"""From vLLM's outputs to ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.request import DecodeRequest, Delta, Finish, FinishReason, Output, TokenScore

if TYPE_CHECKING:
    from vllm.logprobs import Logprob
    from vllm.outputs import CompletionOutput, RequestOutput

Position = dict[int, "Logprob"]  # of the token itself and of the most probable ones


def delta_of(choice: int, output: CompletionOutput, top: int | None) -> Delta:
    """New tokens of a choice. top: as `DecodeRequest.logprobs`."""
    delta = Delta(choice, list(output.token_ids))
    if output.logprobs is not None:
        for token, position in zip(delta.token_ids, output.logprobs, strict=True):
            delta.logprobs.append(position[token].logprob)
            if top is not None:
                delta.scores.append(score_of(token, position, top))
    if output.finish_reason is not None:
        delta.finish = finish_of(output)
    return delta


def finish_of(output: CompletionOutput) -> Finish:
    match output.finish_reason:
        case "stop":
            return Finish(FinishReason.STOP, int(output.stop_reason) if output.stop_reason is not None else None)
        case "length":
            return Finish(FinishReason.LENGTH)
        case "abort":
            return Finish(FinishReason.ABORT)
        case other:
            return Finish(FinishReason.ERROR, error_code="internal_error", message=f"vLLM ended the choice: {other}")


def prompt_output(request: DecodeRequest, found: RequestOutput) -> Output:
    """What vLLM says of the request's prompt, with which its own began."""
    prompt = request.prompt_ids
    output = Output(cached_tokens=min(found.num_cached_tokens or 0, len(prompt)))
    if found.prompt_logprobs and request.prompt_logprobs is not None:
        positions: Any = found.prompt_logprobs[: len(prompt)]
        output.prompt_scores = prompt_scores_of(prompt, positions, request.prompt_logprobs, request.scored_from)
    return output


def prompt_scores_of(prompt_ids: Sequence[int], positions: Sequence[Position | None], top: int, first: int) -> list:
    """Scores of prompt tokens from `first` on, None before. positions: one per prompt token."""
    return [
        None if position is None or at < first else score_of(token, position, top)
        for at, (token, position) in enumerate(zip(prompt_ids, positions, strict=True))
    ]


def score_of(token: int, position: Position, top: int) -> TokenScore:
    """ties go to the lower id among those that vLLM lists."""
    ranked = sorted(((other, found.logprob) for other, found in position.items()), key=lambda one: (-one[1], one[0]))
    own = position[token]
    return TokenScore(own.logprob, own.rank or 1, tuple(ranked[:top]))
