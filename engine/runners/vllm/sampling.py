"""From one choice of a request to vLLM's sampling parameters.

Most choices are drawn by our chain: vLLM then gets neutral values and temperature 0, and takes what the chain left.
What vLLM draws with the same law at less cost is left to it.
"""

from __future__ import annotations

from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from engine.request import DecodeRequest
from engine.runners.vllm.choice import Choice

_HELD = 16  # tokens per output of choices that nobody reads as they grow
_HOTTEST = 2.0  # vLLM's limit


def is_native(request: DecodeRequest) -> bool:
    """Whether vLLM draws the choices itself: greedy ones, and plain ones whose client has not given a seed, with random
    numbers that no seed of ours decides."""
    chain = request.chain
    if request.max_tokens == 0:
        return True
    if chain.program is not None or chain.given_order or request.min_tokens:
        return False
    if chain.greedy:
        return not chain.stages
    return not request.seeded and chain.draw.name == "iid" and _plain_values(request) is not None


def sampling_of(request: DecodeRequest, choice: int, native: bool) -> SamplingParams:
    """Parameters of one choice; with `max_tokens` 0 of a request that only scores its prompt. Only the first choice
    asks for log-probabilities of the prompt."""
    if native:
        draws = request.max_tokens > 0 and not request.chain.greedy
        own: dict[str, Any] = (_plain_values(request) or {}) if draws else {"temperature": 0.0}
    else:
        own = {"temperature": 0.0, "extra_args": Choice.of(request, choice).pack()}
    if request.delivery_interval_s and request.watch is None:
        own["stream_interval"] = _HELD
    return SamplingParams(
        max_tokens=max(1, request.max_tokens - len(request.begun)),
        logprobs=request.logprobs or 0,
        prompt_logprobs=request.prompt_logprobs if choice == 0 else None,
        ignore_eos=True,  # the ids that end this request are below
        stop_token_ids=sorted(request.eos_token_ids | request.stop_token_ids),
        output_kind=RequestOutputKind.DELTA,
        detokenize=False,
        skip_clone=True,
        **own,
    )


def row_sampling(choice: Choice, prompt_logprobs: int | None) -> SamplingParams:
    """Parameters of a request for the row behind a branch: vLLM's only token means nothing. prompt_logprobs: as of a
    request."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=prompt_logprobs,
        ignore_eos=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        detokenize=False,
        skip_clone=True,
        extra_args=choice.pack(),
    )


def _plain_values(request: DecodeRequest) -> dict[str, Any] | None:
    """vLLM's values of a chain with temperature, top-k and top-p at most. None: there is more to it."""
    values: dict[str, Any] = {}
    for item in request.chain.stages:
        if item.name not in ("temperature", "top_k", "top_p") or item.values.get("dynatemp_range"):
            return None
        values[item.name] = item.values[item.name]
    return values if values.get("temperature", 1.0) <= _HOTTEST and values.get("top_p", 1.0) > 0 else None
