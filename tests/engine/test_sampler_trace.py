"""Traces through the whole runner: one per token of those who ask, whatever else is in the batch."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.request import DecodeRequest, Delta
from engine.runners.torch.runner import TorchRunner
from samplers.chain import resolve
from samplers.trace import TokenTrace
from tests.engine.test_runner_sampling import running

pytestmark = pytest.mark.filterwarnings("ignore")
CHAINS: list[dict[str, Any]] = [{"temperature": 0.7, "top_k": 5}, {"temperature": 0}, {"min_p": 0.1, "draw": "gumbel"}]


async def ask(runner: TorchRunner, name: str, fields: dict[str, Any], n: int, trace: int | None) -> list[Delta]:
    """Everything of each choice, merged as a slow reader sees it."""
    chain = resolve(fields, runner.vocab_size)
    request = DecodeRequest(
        id=name, prompt_ids=(5, 6, 7), chain=chain, seed=3, max_tokens=12, n=n, trace=trace, delivery_interval_s=0.05
    )
    merged = [Delta(choice) for choice in range(n)]
    async for output in runner.submit(request):
        for choice, delta in output.deltas.items():
            merged[choice].absorb(delta)
    return merged


def test_only_those_who_ask_get_traces_and_nobodys_tokens_change() -> None:
    async def scenario() -> None:
        async with running() as runner:
            plain = await asyncio.gather(*(ask(runner, f"p{i}", one, 2, None) for i, one in enumerate(CHAINS)))
            asked = (None, 3, 4)
            mixed = await asyncio.gather(
                *(ask(runner, f"m{i}", one, 2, trace) for i, (one, trace) in enumerate(zip(CHAINS, asked, strict=True)))
            )
        for choices, others, trace, fields in zip(plain, mixed, asked, CHAINS, strict=True):
            names = [item.name for item in resolve(fields, 1000).stages]
            for one, other in zip(choices, others, strict=True):
                assert one.token_ids == other.token_ids and one.traces == []
                if trace is None:
                    assert other.traces == []
                    continue
                traces = [known for known in other.traces if isinstance(known, TokenTrace)]
                assert [known.token for known in traces] == other.token_ids
                assert all([stage.name for stage in known.stages] == names for known in traces)
                assert all(trace <= len(known.candidates) <= 2 * trace for known in traces)

    asyncio.run(scenario())
