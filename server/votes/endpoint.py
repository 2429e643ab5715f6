"""HTTP endpoints that the operator has configured, never a request: one question as JSON, one answer.

Knows nothing about what is asked. Lives in the event loop.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from server.jsontext import dumps

R = TypeVar("R", bound="Reply")


class EndpointFailed(Exception):
    """It has not answered as it should. The message is for the operator."""


class Reply(BaseModel):
    """What an endpoint answers; other fields are its own affair."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Endpoint:
    """One address. Connections are kept for later questions, until `close`."""

    def __init__(self, url: str, timeout_s: float, api_key: str | None = None) -> None:
        """timeout_s: from the request to the end of the answer. api_key: sent as a bearer token."""
        headers = {"content-type": "application/json"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        self._url = url
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(headers=headers, timeout=None)  # it knows no limit for a whole exchange

    async def ask(self, question: Any, kind: type[R]) -> R:
        """Raises EndpointFailed. Nothing is tried again."""
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.post(self._url, content=dumps(question))
        except TimeoutError:
            raise EndpointFailed(f"no answer within {self._timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise EndpointFailed(f"{type(error).__name__}: {error}") from error
        if not response.is_success:
            raise EndpointFailed(f"the answer has status {response.status_code}")
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the answer"
            raise EndpointFailed(f"{where}: {first['msg']}") from None

    async def close(self) -> None:
        await self._client.aclose()
