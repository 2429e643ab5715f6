"""Reward endpoints.

POST {"prompt": string, "responses": [string]} -> {"scores": [number or null]}, higher being better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from server.votes.endpoint import Endpoint, EndpointFailed, Reply
from server.votes.problem import Problem
from server.votes.scoring.scored import ScorerFailed, Scores


class Rewards(Reply):
    scores: list[float | None]


class RewardEndpoint(Endpoint):
    """One of them."""

    async def scores(self, problem: Problem, texts: Sequence[str]) -> Scores:
        try:
            scores = (await self.ask({"prompt": problem.text, "responses": list(texts)}, Rewards)).scores
        except EndpointFailed as error:
            raise ScorerFailed(str(error)) from error
        if len(scores) != len(texts):
            raise ScorerFailed(f"{len(scores)} scores for {len(texts)} responses")
        return Scores(tuple(math.nan if score is None else score for score in scores))
