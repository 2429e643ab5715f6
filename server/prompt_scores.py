"""How probable tokens are that are known already: requests that score the end of a prompt and generate nothing.

Any runner with `Capability.PROMPT_LOGPROBS` can serve them. Lives in the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.request import DecodeRequest
from engine.runners.base import Runner
from samplers.chain import resolve
from server.whole_output import whole_output


class Known(NamedTuple):
    """How probable the end of a prompt is."""

    logprobs: list[float]  # ln p of each of its tokens after all tokens before it, under the raw model
    cached_tokens: int  # of the prompt, that the prefix cache had


async def known(
    runner: Runner, request_id: str, ids: Sequence[int], first: int, *, cache_salt: str = "", priority: int = 0
) -> Known:
    """The probabilities of `ids[first:]`; first >= 1.

    Raises ApiError, or what the runner does: Overloaded, EngineFailed, or TooLarge for more ids than it has memory for.
    """
    request = DecodeRequest(
        id=request_id,
        prompt_ids=tuple(ids),
        chain=resolve({}, runner.vocab_size, runner.facts),
        seed=0,
        max_tokens=0,
        prompt_logprobs=0,
        scored_from=first,
        priority=priority,
        cache_salt=cache_salt,
    )
    output = await whole_output(runner, request)
    assert output.prompt_scores is not None
    scores = output.prompt_scores[first:]
    return Known([score.logprob for score in scores if score is not None], output.cached_tokens)
