"""Decoding through HTTP beside Hugging Face `generate`, on the same model, interleaved in one run.

`drafthouse bench serve`. Three questions: tokens per second at 1 and 16 requests, greedy and sampled; time to the
first token while others generate short or long texts; the cost of 16 samples of a long prompt beside a short one.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from bench.hardware import describe
from bench.server_process import ServerProcess, metrics
from models.embedded import locate

PROMPT_TOKENS = 32
SAMPLES = 16
PROMPTS = (16, 512)  # tokens, for the shared-prefix question
OTHERS = (32, 512)  # tokens that other requests generate, for the first-token question
OTHER_REQUESTS = 8


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    ours: str
    peer: str
    ratio: str


def main(model: str, rounds: int, max_tokens: int, threads: int | None, output: Path | None) -> None:
    """Run everything, print the tables, and write them to `output` when given."""
    console = Console()
    if threads is not None:
        torch.set_num_threads(threads)
    arguments = ["--model", model, *(["--threads", str(threads)] if threads else [])]
    with ServerProcess(*arguments) as server:
        bench = _Bench(server.url, model, rounds, max_tokens)
        with console.status("measuring"):
            throughput = bench.throughput()
            first_token = asyncio.run(bench.first_token())
            shared = bench.shared_prefix()
    text = "\n".join(
        [
            f"{describe()}.",
            f"Model {model}, {rounds} interleaved rounds, median (lowest-highest).",
            f"Command: `drafthouse bench serve --rounds {rounds} --max-tokens {max_tokens}`.",
            "",
            *_table(("", "Drafthouse, HTTP, tokens/s", "transformers generate, tokens/s", "ratio"), throughput),
            "",
            *_table(("time to first token", "ms", "", "ratio"), first_token),
            "",
            *_table((f"{SAMPLES} samples of one prompt, model time", "s", "", "ratio"), shared),
        ]
    )
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    if output is not None:
        output.write_text(text + "\n")


class _Bench:
    def __init__(self, url: str, model: str, rounds: int, max_tokens: int) -> None:
        self._url, self._rounds, self._max_tokens = url, rounds, max_tokens
        self._model = AutoModelForCausalLM.from_pretrained(locate(model)).eval()
        self._vocab = self._model.config.vocab_size
        self._id = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]

    def _prompts(self, count: int, length: int, seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(300, self._vocab, (count, length), generator=generator).tolist()

    def _body(self, prompt: list[int], max_tokens: int, **fields: Any) -> dict[str, Any]:
        return {"model": self._id, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, **fields}

    def throughput(self) -> list[Row]:
        rows = []
        for batch in (1, 16):
            for temperature in (0.0, 1.0):
                ours, peer = [], []
                for round_ in range(-1, self._rounds):  # round -1 warms both up
                    prompts = self._prompts(batch, PROMPT_TOKENS, 100 * batch + round_)
                    seconds = asyncio.run(self._requests(prompts, temperature))
                    other = self._generate(prompts, temperature)
                    if round_ >= 0:
                        ours.append(batch * self._max_tokens / seconds)
                        peer.append(batch * self._max_tokens / other)
                ratios = [a / b for a, b in zip(ours, peer, strict=True)]
                what = f"{batch} request{'s' * (batch > 1)}, {'T = 1' if temperature else 'greedy'}"
                rows.append(Row(what, _spread(ours, 0), _spread(peer, 0), _spread(ratios, 2)))
        return rows

    async def _requests(self, prompts: list[list[int]], temperature: float) -> float:
        async with httpx.AsyncClient(timeout=300) as client:
            began = time.perf_counter()
            answers = await asyncio.gather(
                *[
                    client.post(
                        f"{self._url}/v1/completions",
                        json=self._body(prompt, self._max_tokens, temperature=temperature, seed=i),
                    )
                    for i, prompt in enumerate(prompts)
                ]
            )
            seconds = time.perf_counter() - began
        for answer in answers:
            assert answer.json()["usage"]["completion_tokens"] == self._max_tokens, answer.text
        return seconds

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], temperature: float) -> float:
        ids = torch.tensor(prompts)
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0} if temperature else {"do_sample": False}
        began = time.perf_counter()
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self._max_tokens,
            min_new_tokens=self._max_tokens,
            pad_token_id=0,
            **sampling,
        )
        return time.perf_counter() - began

    async def first_token(self) -> list[Row]:
        """Time to first token of a short request while others generate `OTHERS` tokens each."""
        medians: dict[int, list[float]] = {length: [] for length in OTHERS}
        async with httpx.AsyncClient(timeout=300) as client:
            for round_ in range(-1, 4 * self._rounds):
                for length in OTHERS:
                    others = [
                        asyncio.create_task(
                            client.post(
                                f"{self._url}/v1/completions",
                                json=self._body(prompt, length, seed=i),
                            )
                        )
                        for i, prompt in enumerate(self._prompts(OTHER_REQUESTS, PROMPT_TOKENS, round_ + 7))
                    ]
                    await asyncio.sleep(0.05)  # they are decoding now
                    seconds = await self._first_chunk(client, round_)
                    if round_ >= 0:
                        medians[length].append(1000 * seconds)
                    await asyncio.gather(*others)
        base = statistics.median(medians[OTHERS[0]])
        return [
            Row(
                f"beside {OTHER_REQUESTS} requests of {length} tokens",
                _spread(values, 1),
                "",
                f"{statistics.median(values) / base:.2f}",
            )
            for length, values in medians.items()
        ]

    async def _first_chunk(self, client: httpx.AsyncClient, round_: int) -> float:
        body = self._body(self._prompts(1, PROMPT_TOKENS, 9000 + round_)[0], 8, stream=True)
        began = time.perf_counter()
        async with client.stream("POST", f"{self._url}/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    return time.perf_counter() - began
        raise RuntimeError("the stream held no chunk")

    def shared_prefix(self) -> list[Row]:
        """Forward seconds of n samples, from the server's own counter."""
        seconds: dict[int, list[float]] = {length: [] for length in PROMPTS}
        for round_ in range(-1, self._rounds):
            for length in PROMPTS:
                prompt = self._prompts(1, length, 500 + round_)[0]
                before = self._forward_seconds()
                answer = httpx.post(
                    f"{self._url}/v1/completions",
                    json=self._body(prompt, self._max_tokens, n=SAMPLES, seed=round_),
                    timeout=300,
                )
                assert answer.json()["usage"]["completion_tokens"] == SAMPLES * self._max_tokens, answer.text
                if round_ >= 0:
                    seconds[length].append(self._forward_seconds() - before)
        ratios = [b / a for a, b in zip(seconds[PROMPTS[0]], seconds[PROMPTS[1]], strict=True)]
        return [
            Row(f"prompt of {PROMPTS[0]} tokens", _spread(seconds[PROMPTS[0]], 3), "", "1"),
            Row(f"prompt of {PROMPTS[1]} tokens", _spread(seconds[PROMPTS[1]], 3), "", _spread(ratios, 2)),
        ]

    def _forward_seconds(self) -> float:
        return metrics(self._url).get('drafthouse_step_seconds{part="forward"}', 0.0)


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _table(header: tuple[str, ...], rows: list[Row]) -> list[str]:
    keep = [i for i, name in enumerate(header) if name or i == 0]
    cells = [[(row.what, row.ours, row.peer, row.ratio)[i] for i in keep] for row in rows]
    lines = ["| " + " | ".join(header[i] for i in keep) + " |", "|" + " --- |" * len(keep)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in cells)]
