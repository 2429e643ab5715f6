"""Many requests of every shape, a third of whose clients go away; then nothing may be held and all answers be right.

`python -m bench.soak --requests 2000 --concurrency 32 --url URL`; without a URL a server is started. Resident memory
is compared between the end and the first quarter: with a small `kv_bytes` the pool has been touched by then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from bench.server_process import ServerProcess, metrics

SETTLE_S = 60.0
ANSWER_S = 120.0
KV_BYTES = 32 * 2**20
HELD = ("requests_running", "requests_waiting", "queued_tokens", "slots_in_use", "kv_pages_in_use")
PAGES = ("kv_pages_in_use", "kv_pages_cached", "kv_pages_total")
SHOWN_FAULTS = 10

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
VALID_SHARE = 0.88
LEAVING_SHARE = 1 / 3
LEAVE_S = (0.001, 1.0)  # when, log-uniform

SHARED = "import os\nimport sys\n\n\nclass Reader:\n    def __init__(self, path):\n        self.path = path\n" * 12
CODE = ("def read_lines(path):\n", "for i in range(10):\n    ", "class Error(Exception):\n", "x = [", "# ünïcode 😀\n")
QUESTIONS = (
    "Tom has 3 boxes with 8 pens in each. He loses 5. How many pens does Tom have now?",
    "Mia buys 4 books for 6 dollars each. She pays with 50 dollars. How much change does Mia get?",
    "Hi",
)
SAMPLING: tuple[dict[str, Any], ...] = (
    {}, {"temperature": 0}, {"temperature": 0.8, "top_p": 0.9}, {"temperature": 1.3, "min_p": 0.05, "top_k": 50},
    {"frequency_penalty": 0.7, "presence_penalty": 0.3}, {"repetition_penalty": 1.2, "temperature": 0},
    {"logit_bias": {"300": -100, "400": 2}}, {"allowed_token_ids": list(range(300, 900))},
    {"bad_words": ["return", "import"]}, {"draw": "gumbel"},
    {"sampler": ["gumbel", {"name": "min_p", "min_p": 0.1}, {"name": "temperature", "temperature": 0.7}]},
)  # fmt: skip
ENDINGS: tuple[dict[str, Any], ...] = (
    {}, {"ignore_eos": True}, {"min_tokens": 4}, {"stop": "\n"}, {"stop_token_ids": [13, 300]},
    {"stop": ["return", "\n\n"], "include_stop_str_in_output": True},
)  # fmt: skip
EXTRAS: tuple[dict[str, Any], ...] = (
    {}, {}, {"cache_salt": "a"}, {"priority": -1}, {"return_token_ids": True}, {"logprobs_mode": "processed"},
    {"truncate_prompt_tokens": 40},
)  # fmt: skip
REFUSED: tuple[dict[str, Any], ...] = (
    {"temperature": -1}, {"n": 0}, {"max_tokens": 10**9}, {"sampler": "typo"}, {"top_p": "0.5"}, {"seed": 2**70},
    {"stop": [""]}, {"logit_bias": {"x": 1}}, {"allowed_token_ids": []}, {"guided_regex": "a+"}, {"min_tokens": 500},
    {"messages": [], "prompt": []}, {"n": 10**6}, {"stop_token_ids": [10**9]},
)  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """One request and what is known about its answer."""

    path: str
    body: dict[str, Any]
    status: int
    choices: int
    leave_s: float | None  # seconds after which the client goes away

    @property
    def scores(self) -> bool:
        return self.body.get("max_tokens") == 0


def asks(model: str, count: int, seed: int) -> list[Ask]:
    draw = Random(seed)
    return [_ask(model, draw) for _ in range(count)]


def _ask(model: str, draw: Random) -> Ask:
    leave_s = math.exp(draw.uniform(*map(math.log, LEAVE_S))) if draw.random() < LEAVING_SHARE else None
    path = draw.choice((CHAT, TEXT))
    body: dict[str, Any] = {"model": model, "max_tokens": draw.randint(8, 48), "n": draw.choice((1, 1, 1, 2, 3, 4))}
    for group in (SAMPLING, ENDINGS, EXTRAS):
        body |= draw.choice(group)
    if draw.random() < 0.5:
        body["seed"] = draw.randrange(2**32)
    body |= _chat(draw) if path == CHAT else _text(draw)
    if draw.random() > VALID_SHARE:
        return Ask(path, body | draw.choice(REFUSED), 400, 0, leave_s)
    prompts = body.get("prompt")
    count = len(prompts) if isinstance(prompts, list) and isinstance(prompts[0], str) else 1
    return Ask(path, body, 200, count * body["n"], leave_s)


def _chat(draw: Random) -> dict[str, Any]:
    messages = [{"role": "user", "content": draw.choice(QUESTIONS)}]
    if draw.random() < 0.3:
        messages.insert(0, {"role": "system", "content": SHARED[: draw.randrange(900)]})
    logprobs = {"logprobs": True, "top_logprobs": draw.randint(0, 20)} if draw.random() < 0.3 else {}
    return {"messages": messages} | logprobs | _stream(draw)


def _text(draw: Random) -> dict[str, Any]:
    prompt: Any = draw.choice(CODE)
    kind = draw.randrange(6)
    if kind < 2:
        prompt = SHARED[: draw.randrange(1, len(SHARED))] + prompt
    elif kind == 2:
        prompt = [prompt, draw.choice(CODE), SHARED[:200]]
    elif kind == 3:
        prompt = [draw.randrange(300, 4000) for _ in range(draw.randint(1, 300))]
    body: dict[str, Any] = {"prompt": prompt}
    if draw.random() < 0.4:
        body["logprobs"] = draw.randint(0, 5)
    if draw.random() < 0.25:
        return body | {"echo": True, "max_tokens": 0, "logprobs": 1, "n": 1, "min_tokens": 0}
    if draw.random() < 0.1:
        return body | {"n": 2, "best_of": 4}
    return body | {"echo": draw.random() < 0.2} | _stream(draw)


def _stream(draw: Random) -> dict[str, Any]:
    options = draw.choice(({}, {"stream_options": {"include_usage": True}}, {"stream_interval": 5}))
    return {"stream": True} | options if draw.random() < 0.5 else {}


@dataclass
class Report:
    """What a soak found. `faults` are answers that were wrong; `held` what should have been released."""

    seconds: float
    outcomes: Counter[str]
    faults: list[str]
    held: dict[str, float]
    pages: dict[str, float]
    preemptions: float
    same_tokens: bool  # greedy, before and after
    rss: list[int] = field(default_factory=list)  # bytes after the first quarter and at the end

    @property
    def growth(self) -> int:
        return self.rss[-1] - self.rss[0] if self.rss else 0

    @property
    def fits(self) -> bool:
        return self.pages["kv_pages_in_use"] + self.pages["kv_pages_cached"] <= self.pages["kv_pages_total"]

    @property
    def passed(self) -> bool:
        return not self.faults and not self.held and self.fits and self.same_tokens


class Wrong(Exception):
    """An answer is not what the request asked for."""


def soak(url: str, pid: int | None, requests: int, concurrency: int, seed: int) -> Report:
    """Send everything, in two parts with a pause between them, and look at what is left."""
    model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    todo = asks(model, requests, seed)
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    rss: list[int] = []
    before = _greedy(url, model)
    began = time.perf_counter()
    for part in (todo[: requests // 4], todo[requests // 4 :]):
        asyncio.run(_send_all(url, part, concurrency, outcomes, faults))
        held = _settle(url)
        if pid is not None:
            rss.append(psutil.Process(pid).memory_info().rss)
    seconds = time.perf_counter() - began
    now = metrics(url)
    pages = {name: _sum(now, name) for name in PAGES}
    same = _greedy(url, model) == before
    return Report(seconds, outcomes, faults, held, pages, _sum(now, "preemptions_total"), same, rss)


def _greedy(url: str, model: str) -> list[list[int]]:
    body = {"model": model, "prompt": list(CODE), "max_tokens": 32, "temperature": 0, "return_token_ids": True}
    response = httpx.post(url + TEXT, json=body, timeout=ANSWER_S).raise_for_status()
    return [choice["token_ids"] for choice in response.json()["choices"]]


def _sum(samples: dict[str, float], name: str) -> float:
    """Over all models."""
    full = f"drafthouse_{name}"
    return sum(value for sample, value in samples.items() if sample.split("{")[0] == full)


def _settle(url: str) -> dict[str, float]:
    """What is still held when nothing has changed it for long enough."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        now = metrics(url)
        held = {name: value for name in HELD if (value := _sum(now, name))}
        if not held or time.monotonic() > deadline:
            return held
        time.sleep(0.1)


async def _send_all(url: str, todo: list[Ask], concurrency: int, outcomes: Counter[str], faults: list[str]) -> None:
    pending = iter(todo)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=concurrency)

    async def work(client: httpx.AsyncClient) -> None:
        for ask in pending:
            try:
                outcomes[await _send(client, ask)] += 1
            except (Wrong, httpx.HTTPError, KeyError, ValueError) as error:
                outcomes["wrong"] += 1
                faults.append(f"{error!r}: {ask}")

    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_S, limits=limits) as client:
        await asyncio.gather(*(work(client) for _ in range(concurrency)))


async def _send(client: httpx.AsyncClient, ask: Ask) -> str:
    """The outcome's name. Raises Wrong."""
    try:
        async with asyncio.timeout(ask.leave_s):
            if ask.body.get("stream") and ask.status == 200:
                return await _streamed(client, ask)
            response = await client.post(ask.path, json=ask.body)
    except TimeoutError:
        return "left"
    if response.status_code != ask.status:
        raise Wrong(f"{response.status_code} instead of {ask.status}: {response.text[:300]}")
    if ask.status != 200:
        if response.json()["error"].keys() != {"message", "type", "param", "code"}:
            raise Wrong(response.text[:300])
        return "refused"
    _check(ask, response.json())
    return "scored" if ask.scores else "whole"


async def _streamed(client: httpx.AsyncClient, ask: Ask) -> str:
    ended: list[int] = []
    last = ""
    async with client.stream("POST", ask.path, json=ask.body) as response:
        if response.status_code != 200:
            raise Wrong(f"{response.status_code} instead of a stream: {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            if not line:
                continue
            last = line
            if line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise Wrong(line[:300])
            ended += [choice["index"] for choice in chunk["choices"] if choice["finish_reason"] is not None]
    if last != "data: [DONE]" or sorted(ended) != list(range(ask.choices)):
        raise Wrong(f"the stream ended with {last[:100]!r} and the choices {sorted(ended)}")
    return "streamed"


def _check(ask: Ask, answer: dict[str, Any]) -> None:
    choices, usage = answer["choices"], answer["usage"]
    if [choice["index"] for choice in choices] != list(range(ask.choices)):
        raise Wrong(f"{len(choices)} choices instead of {ask.choices}")
    if any(choice["stop_reason"] == "error" for choice in choices):
        raise Wrong("a choice failed")
    generated = ask.choices * ask.body.get("best_of", ask.body["n"]) // ask.body["n"]
    if usage["completion_tokens"] > ask.body["max_tokens"] * generated:
        raise Wrong(f"{usage['completion_tokens']} tokens")
    if ask.scores and sum(len(choice["logprobs"]["token_logprobs"]) for choice in choices) != usage["prompt_tokens"]:
        raise Wrong("not one log-probability per prompt token")


def _pid_of(url: str) -> int | None:
    """Who listens there, if that is a process of ours on this machine."""
    port = urlsplit(url).port
    for process in psutil.process_iter():
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections):
            return int(process.pid)
    return None


def _show(report: Report) -> None:
    table = Table("", "", show_header=False)
    table.add_row("seconds", f"{report.seconds:.0f}")
    for name, count in sorted(report.outcomes.items()):
        table.add_row(f"requests {name}", str(count))
    for name, value in report.pages.items():
        table.add_row(name, f"{value:.0f}")
    table.add_row("preemptions", f"{report.preemptions:.0f}")
    table.add_row("still held", str(report.held or "nothing"))
    table.add_row("greedy tokens as before", "yes" if report.same_tokens else "NO")
    if report.rss:
        table.add_row("resident after a quarter", f"{report.rss[0] / 2**20:.0f} MiB")
        table.add_row("growth since", f"{report.growth / 2**20:+.1f} MiB")
    console = Console()
    console.print(table)
    for fault in report.faults[:SHOWN_FAULTS]:
        console.print(fault, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="a running server; default: start one")
    given = parser.parse_args()
    if given.url:
        url = given.url.rstrip("/")
        report = soak(url, _pid_of(url), given.requests, given.concurrency, given.seed)
    else:
        with ServerProcess("--kv-bytes", str(KV_BYTES)) as server:
            report = soak(server.url, server.group.root.pid, given.requests, given.concurrency, given.seed)
    _show(report)
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    main()
