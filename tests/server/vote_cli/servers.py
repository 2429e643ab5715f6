"""Servers for `drafthouse vote run`: small laws in the dialects of several real ones, without sockets."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

TOKENS = ("4 * 5 = 20", "3 * 5 = 15", "#### 20", "#### 15", "#### 21")
INSTEAD = {"max_tokens": " Use 'max_completion_tokens' instead."}
END = 9  # id of the token that ends a text


@dataclass
class FakeServer:
    """Samples are functions of seed and choice: a line of sums, an answer, and the ending token."""

    extras: bool = True  # cumulative_logprob and token ids, as Drafthouse has them
    lists_end: bool = False  # logprobs hold the ending token
    logprobs: bool = True
    usage: bool = True
    most_top: int = 20
    most_choices: int = 128
    refuses: tuple[str, ...] = ()  # fields that are an error
    ignores_n: bool = False
    program: int | None = None  # choices that a program has made
    failing: Callable[[dict[str, Any]], httpx.Response | None] = lambda body: None
    delay_s: Callable[[dict[str, Any]], float] = lambda body: 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)  # that were answered with samples
    headers: list[httpx.Headers] = field(default_factory=list)

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._answer)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        self.headers.append(request.headers)
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "first"}, {"id": "second"}]})
        body = json.loads(request.content)
        if (failure := self.failing(body) or self._refusal(body)) is not None:
            return failure
        await asyncio.sleep(self.delay_s(body))
        self.bodies.append(body)
        made = self.program or (1 if self.ignores_n else body["n"])
        chat = request.url.path.endswith("/chat/completions")
        choices = [self._choice(body, chat, j) for j in range(made)]
        answer: dict[str, Any] = {"choices": choices[::-1]}  # in no order
        if self.usage:
            answer["usage"] = {"completion_tokens": 3 * made}
        if self.program:
            answer["drafthouse"] = {"program": {"distinct": made}}
        return httpx.Response(200, json=answer)

    def _refusal(self, body: dict[str, Any]) -> httpx.Response | None:
        for name in self.refuses:
            if name in body:
                return error(400, f"Unsupported parameter: '{name}'.{INSTEAD.get(name, '')}")
        top = body.get("top_logprobs", body.get("logprobs", 0))
        if top is not True and top > self.most_top:
            name = "top_logprobs" if "top_logprobs" in body else "logprobs"
            return error(400, f"must be at most {self.most_top}", name)
        if body["n"] > self.most_choices:
            return error(400, "Only one completion choice is allowed" if self.most_choices == 1 else "too many", "")
        return None

    def _choice(self, body: dict[str, Any], chat: bool, j: int) -> dict[str, Any]:
        rng = random.Random(f"{body.get('seed')} {j}")
        places = [rng.randrange(2), 2 + rng.randrange(3)]
        ids = [*places, END]
        lps = [-rng.random() for _ in ids]
        text = "\n".join(TOKENS[place] for place in places)
        choice: dict[str, Any] = {"index": j, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if self.logprobs and body.get("logprobs"):
            shown = len(ids) if self.lists_end else len(ids) - 1
            choice["logprobs"] = (_chat if chat else _lists)(ids[:shown], lps[:shown], body)
        if self.extras:
            choice |= {"cumulative_logprob": math.fsum(lps), "token_ids": ids}
        return choice


def error(status: int, message: str, param: str | None = None, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "param": param}}, headers=headers)


def alternatives(logprob: float, k: int) -> list[float]:
    """Of a token: itself, and others that are less probable."""
    return [logprob - 0.5 * place for place in range(k)]


def _chat(ids: list[int], lps: list[float], body: dict[str, Any]) -> dict[str, Any]:
    def item(token: int, logprob: float) -> dict[str, Any]:
        return {"token": str(token), "logprob": logprob, "bytes": None}

    return {
        "content": [
            item(one, lp) | {"top_logprobs": [item(0, x) for x in alternatives(lp, body.get("top_logprobs", 0))]}
            for one, lp in zip(ids, lps, strict=True)
        ]
    }


def _lists(ids: list[int], lps: list[float], body: dict[str, Any]) -> dict[str, Any]:
    names = "token_id:{}" if body.get("return_tokens_as_token_ids") else "t"  # else all have the same text
    return {
        "tokens": [str(one) for one in ids],
        "token_logprobs": lps,
        "top_logprobs": [
            {names.format(place): x for place, x in enumerate(alternatives(lp, body["logprobs"]))} for lp in lps
        ],
        "text_offset": [0] * len(ids),
    }
