"""Log-likelihood requests and their evaluation exactly as lm-eval's `local-completions` does them."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import httpx
import torch

from tests.acceptance.reference import MODEL, Reference

TOLERANCE = 1e-4
NEAR_TIE = 1e-5  # two implementations in float32 may order such a pair differently


def score_body(prompts: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234}
    return body | {"echo": True} | fields


def score(http: httpx.Client, prompts: Any, **fields: Any) -> dict[str, Any]:
    response = http.post("/v1/completions", json=score_body(prompts, **fields))
    assert response.status_code == 200, response.text
    return dict(response.json())


@dataclass(frozen=True)
class Scored:
    """What the client keeps of one choice."""

    logprobs: list[float]
    greedy: list[bool]


def parse(answer: dict[str, Any], context_lengths: list[int]) -> list[Scored]:
    """The client's reading: the generated token is dropped, sums and flags come from the slice that is left."""
    scored = []
    for choice, start in zip(sorted(answer["choices"], key=itemgetter("index")), context_lengths, strict=False):
        logprobs = choice["logprobs"]["token_logprobs"][start:-1]
        top = choice["logprobs"]["top_logprobs"][start:-1]
        greedy = [value == max(best.values()) for value, best in zip(logprobs, top, strict=False)]
        scored.append(Scored(logprobs, greedy))
    return scored


def check(reference: Reference, answer: dict[str, Any], prompts: list[list[int]]) -> tuple[int, float]:
    """Every token of every prompt against the reference: positions compared and the largest difference."""
    scored = parse(answer, [1] * len(prompts))
    assert len(scored) == len(prompts), "a choice is missing"
    positions, largest = 0, 0.0
    for one, ids in zip(scored, prompts, strict=True):
        assert len(one.logprobs) == len(one.greedy) == len(ids) - 1, "not one entry per token of the prompt"
        if len(ids) == 1:
            continue
        rows, targets = reference.logprobs(ids)[:-1], torch.tensor(ids[1:])
        expected = rows.gather(1, targets[:, None])[:, 0]
        differences = (torch.tensor(one.logprobs, dtype=torch.float64) - expected).abs()
        assert float(differences.max()) <= TOLERANCE, f"token {int(differences.argmax()) + 1} of {len(ids)}"
        best = rows.topk(2).values
        for at, (flag, token) in enumerate(zip(one.greedy, ids[1:], strict=True)):
            if float(best[at, 0] - best[at, 1]) > NEAR_TIE:
                assert flag == (int(rows[at].argmax()) == token), f"is_greedy of token {at + 1} of {len(ids)}"
        positions += len(targets)
        largest = max(largest, float(differences.max()))
    return positions, largest
