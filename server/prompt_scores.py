"""How probable tokens are that are known already: requests that score the end of a prompt and generate nothing.

Any runner with `Capability.PROMPT_LOGPROBS` can serve them. Lives in the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

from engine.request import DecodeRequest, Output
from engine.runners.base import Runner
from samplers.chain import resolve
from server.errors import overloaded


async def logprobs_of(
    runner: Runner, request_id: str, ids: Sequence[int], first: int, cache_salt: str = ""
) -> list[float]:
    """ln p of each of `ids[first:]` after all ids before it, under the raw model; first >= 1.

    Raises what the runner does: Overloaded, EngineFailed, or TooLarge for more ids than it has memory for.
    """
    request = DecodeRequest(
        id=request_id,
        prompt_ids=tuple(ids),
        chain=resolve({}, runner.vocab_size, runner.facts),
        seed=0,
        max_tokens=0,
        prompt_logprobs=0,
        scored_from=first,
        cache_salt=cache_salt,
    )
    async with aclosing(cast(AsyncGenerator[Output], runner.submit(request))) as outputs:
        async for output in outputs:
            if output.scored:
                assert output.prompt_scores is not None
                return [score.logprob for score in output.prompt_scores[first:] if score is not None]
    raise overloaded("the request was ended by the server")
