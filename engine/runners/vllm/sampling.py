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
from samplers.chain import Item
from samplers.registry import STAGES

_HELD = 16  # tokens per output of choices that nobody reads as they grow
_COOLEST, _HOTTEST = 0.01, 2.0  # what is colder vLLM quietly makes as warm as this, what is hotter it refuses
_PLAIN = ("temperature", "top_k", "top_p")


def is_native(request: DecodeRequest) -> bool:
    """Whether vLLM draws the choices itself: greedy ones, and plain ones whose client has not given a seed, with random
    numbers that no seed of ours decides."""
    return needs_chain(request) is None


def needs_chain(request: DecodeRequest) -> str | None:
    """The first field of a request that takes samplers of ours."""
    chain = request.chain
    if request.max_tokens == 0:
        return None
    if asks_more(request):
        return "logprobs" if request.trace is None else "return_sampler_trace"
    if chain.program is not None:
        return "sampler"
    if chain.given_order:
        return "sampler_order"
    if request.min_tokens:
        return "min_tokens"
    if chain.greedy:
        return chain.stages[0].name if chain.stages else None
    if request.seeded:
        return "seed"
    if chain.draw.name != "iid":
        return "draw"
    return next((item.name for item in chain.stages if not _is_plain(item)), None)


def asks_more(request: DecodeRequest) -> bool:
    """Whether a request wants to know of its tokens what only samplers of ours can say."""
    scores = request.logprobs is not None and bool(request.processed_logprobs or request.logprob_token_ids)
    return scores or request.trace is not None


def may_filter(request: DecodeRequest) -> bool:
    """Whether vLLM may draw from the rows that the chain leaves: nothing but the law is asked for, and no state depends
    on who draws."""
    chain = request.chain
    rebuilt = all(STAGES.get(item.name).resumable for item in chain.stages) and not asks_more(request)
    return rebuilt and not (chain.greedy or request.seeded or chain.draw.name != "iid")


def sampling_of(request: DecodeRequest, choice: int, native: bool, filtered: bool = False) -> SamplingParams:
    """Parameters of one choice; with `max_tokens` 0 of a request that only scores its prompt. Only the first choice
    asks for log-probabilities of the prompt. filtered: vLLM draws from what the chain leaves."""
    if native:
        own: dict[str, Any] = {"temperature": 0.0}
        if request.max_tokens > 0 and not request.chain.greedy:
            own = {item.name: item.values[item.name] for item in request.chain.stages}
    else:
        own = {"temperature": float(filtered), "extra_args": Choice.of(request, choice, filtered).pack()}
    if request.delivery_interval_s and request.watch is None:
        own["stream_interval"] = _HELD
    return SamplingParams(
        max_tokens=max(1, request.max_tokens - len(request.begun)),
        logprobs=0 if request.logprobs is None and request.compared else request.logprobs,
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


def _is_plain(item: Item) -> bool:
    """Whether vLLM has this stage, with these values."""
    if item.name not in _PLAIN or item.values.get("dynatemp_range"):
        return False
    value = item.values[item.name]
    return bool(value > 0 if item.name == "top_p" else _COOLEST <= value <= _HOTTEST or item.name == "top_k")
