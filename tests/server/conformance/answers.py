"""Answers as the tests compare them: of either endpoint, whole or streamed; and what requests leave behind."""

from __future__ import annotations

import math
import time
from typing import Any

import httpx

# what the clock and the cache decide
UNSTEADY = {"cached_tokens", "steps", "drafted", "accepted", "mean_emitted"}
HELD = ("requests_running", "requests_waiting", "kv_pages_in_use", "slots_in_use")


def body(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return dict(response.json())


def text_of(choice: dict[str, Any]) -> str:
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def ids_of(answer: dict[str, Any]) -> list[list[int]]:
    return [choice["token_ids"] for choice in answer["choices"]]


def entries(choice: dict[str, Any]) -> list[tuple[str, float, list[float]]]:
    """(token, logprob, those of the most probable tokens) of each listed token, on either endpoint."""
    listed = choice["logprobs"]
    if "content" in listed:
        return [(e["token"], e["logprob"], [top["logprob"] for top in e["top_logprobs"]]) for e in listed["content"]]
    tops = [list((top or {}).values()) for top in listed["top_logprobs"]]  # none for the first token of a prompt
    return list(zip(listed["tokens"], listed["token_logprobs"], tops, strict=True))


def assembled(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What a stream adds up to, in the form of a whole answer."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for part in event["choices"]:
            choice = choices.setdefault(part["index"], {"text": "", "token_ids": [], "listed": []})
            assert "finish_reason" not in choice, "goes on after its end"
            choice["text"] += part["delta"].get("content", "") if "delta" in part else part["text"]
            choice["token_ids"] += part.get("token_ids", [])
            choice["listed"] += [] if part["logprobs"] is None else entries(part)
            if part["finish_reason"] is not None:
                choice |= ending(part)
    last = events[-1]
    found = [choice for _, choice in sorted(choices.items())]
    return {"choices": found, "usage": last["usage"], "drafthouse": last["drafthouse"]}


def whole(answer: dict[str, Any]) -> dict[str, Any]:
    """The same parts of an answer that was not streamed."""
    choices = [
        {"text": text_of(one), "token_ids": one["token_ids"], "listed": entries(one), **ending(one)}
        for one in answer["choices"]
    ]
    return {"choices": choices, "usage": answer["usage"], "drafthouse": answer["drafthouse"]}


def ending(choice: dict[str, Any]) -> dict[str, Any]:
    names = ("finish_reason", "stop_reason", "cumulative_logprob", "drafthouse")
    return {name: choice[name] for name in names if name in choice}


def alike(one: Any, other: Any) -> bool:
    """Equal but for rounding, which varies with the shape of the batch, and for what is unsteady."""
    match one:
        case dict():
            names = one.keys() | other.keys() if isinstance(other, dict) else set()
            return isinstance(other, dict) and all(
                name in UNSTEADY or (name in one and name in other and alike(one[name], other[name])) for name in names
            )
        case list() | tuple():
            return len(one) == len(other) and all(map(alike, one, other))
        case float():
            return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-3)
    return bool(one == other)


def held(raw: httpx.Client) -> dict[str, float]:
    """Gauges of what requests hold, those that are not 0, over all models."""
    lines = [line.split() for line in raw.get("/metrics").text.splitlines() if not line.startswith("#")]
    values = dict.fromkeys(HELD, 0.0)
    for name, value in lines:
        gauge = name.partition("{")[0].removeprefix("drafthouse_")
        if gauge in values:
            values[gauge] += float(value)
    return {name: value for name, value in values.items() if value}


def wait_released(raw: httpx.Client) -> None:
    deadline = time.monotonic() + 10
    while left := held(raw):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
