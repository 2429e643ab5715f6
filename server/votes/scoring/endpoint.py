"""Reward endpoints: addresses that the operator has configured, never a request.

POST {"prompt": string, "responses": [string]} -> {"scores": [number or null]}, higher being better.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from server.jsontext import dumps
from server.votes.problem import Problem
from server.votes.scoring.scored import ScorerFailed, Scores


class Reply(BaseModel):
    """What an endpoint answers; other fields are its own affair."""

    model_config = ConfigDict(extra="ignore", strict=True)

    scores: list[float | None]


class RewardEndpoint:
    """One address. Connections are kept for later votes, until `close`."""

    def __init__(self, url: str, timeout_s: float, api_key: str | None = None) -> None:
        """timeout_s: from the request to the end of the answer. api_key: sent as a bearer token."""
        headers = {"content-type": "application/json"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        self._url = url
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(headers=headers, timeout=None)  # it knows no limit for a whole exchange

    async def scores(self, problem: Problem, texts: Sequence[str]) -> Scores:
        question = dumps({"prompt": problem.text, "responses": list(texts)})
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.post(self._url, content=question)
        except TimeoutError:
            raise ScorerFailed(f"no answer within {self._timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise ScorerFailed(f"{type(error).__name__}: {error}") from error
        if not response.is_success:
            raise ScorerFailed(f"the answer has status {response.status_code}")
        return _read(response.content, len(texts))

    async def close(self) -> None:
        await self._client.aclose()


def _read(content: bytes, responses: int) -> Scores:
    try:
        scores = Reply.model_validate_json(content).scores
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the answer"
        raise ScorerFailed(f"{where}: {first['msg']}") from None
    if len(scores) != responses:
        raise ScorerFailed(f"{len(scores)} scores for {responses} responses")
    return Scores(tuple(math.nan if score is None else score for score in scores))
