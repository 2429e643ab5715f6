"""The sandbox that runs programs: an address that the operator has configured. The server itself runs none.

POST {"codes": [string], "tests": [{"input": string, "expected": string}]} -> {"passes": [[boolean]]}, a row per code
with a value per test.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from server.errors import ApiError
from server.votes.endpoint import Endpoint, EndpointFailed, Reply

log = logging.getLogger(__name__)


class CodeTest(NamedTuple):
    """What a program is given, and what it has to print."""

    input: str
    expected: str


class Passes(Reply):
    passes: list[list[bool]]


class CodeExecutor(Endpoint):
    """One of them."""

    async def passes(self, codes: Sequence[str], tests: Sequence[CodeTest]) -> list[list[bool]]:
        """[codes][tests]; each program is sent once. Raises a 500 where the executor does not do its work."""
        distinct = list(dict.fromkeys(codes))
        question = {"codes": distinct, "tests": [test._asdict() for test in tests]}
        try:
            rows = (await self.ask(question, Passes)).passes if distinct else []
            if [len(row) for row in rows] != [len(tests)] * len(distinct):
                raise EndpointFailed(f"'passes' is not {len(distinct)} rows of {len(tests)} values")
        except EndpointFailed as error:
            log.warning("code executor: %s", error)
            message = "the code executor did not answer as it should; the server's log says why"
            raise ApiError(500, message, None, "code_executor_failed", {"x-should-retry": "false"}) from error
        found = dict(zip(distinct, rows, strict=True))
        return [found[code] for code in codes]
