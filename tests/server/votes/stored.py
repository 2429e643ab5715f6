"""Short ways to say what stored votes are asked."""

from __future__ import annotations

from typing import Any

import httpx

# 7 has three votes and 8 has two; 9 has one, of the surest sample, and the last sample abstains
TEXTS = ("a #### 8", "b #### 7", "c #### 7.0", "d #### 8", "e #### 9", "f #### 7", "nothing")
MEAN_LOGPROBS = (-0.4, -0.5, -0.3, -0.6, -0.1, -0.7, -0.2)
RECORDS: list[dict[str, Any]] = [
    {"text": text, "mean_logprob": mean, "n_tokens": 4} for text, mean in zip(TEXTS, MEAN_LOGPROBS, strict=True)
]


def post_vote(raw: httpx.Client, **fields: Any) -> httpx.Response:
    """A vote over given samples, unless `fields` say how long those to be drawn may get."""
    given = {} if "max_tokens" in fields else {"samples_data": RECORDS}
    return raw.post("/v1/votes", json=given | fields)


def hold(raw: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = post_vote(raw, **fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def post_verdict(raw: httpx.Client, vote: dict[str, Any], verdict: str, **fields: Any) -> httpx.Response:
    return raw.post(f"/v1/votes/{vote['id']}/validate", json={"verdict": verdict} | fields)


def say(raw: httpx.Client, vote: dict[str, Any], verdict: str, **fields: Any) -> dict[str, Any]:
    """The vote after a verdict, which is also what is read afterwards."""
    response = post_verdict(raw, vote, verdict, **fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    assert stored(raw, vote) == body
    return body


def stored(raw: httpx.Client, vote: dict[str, Any]) -> dict[str, Any]:
    response = raw.get(f"/v1/votes/{vote['id']}")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body
