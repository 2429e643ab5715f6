"""An OpenAI-compatible server as `drafthouse vote run` sees it: JSON in, JSON out, tried again where that may help."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
LONGEST_RETRY_AFTER_S = 3600.0
_AGAIN = {408, 409, 425, 429}  # and all from 500
_HOPELESS = {401, 403, 404}  # of whatever is asked
_QUOTED = 500  # characters of an error that are shown


class QuestionFailed(Exception):
    """This request cannot be answered; others may be."""


class Refused(QuestionFailed):
    """The server finds fault with the request."""

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(message)
        self.param = param  # the field at fault, where the server names it


class CannotGoOn(Exception):
    """No request can be answered."""


class Remote:
    """A client of one server, for one event loop. At most `concurrency` requests are under way, waits included."""

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        concurrency: int,
        timeout_s: float,
        retries: int,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Raises CannotGoOn for what is no URL."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=concurrency)
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0), pool=None)
        try:
            base = httpx.URL(url.rstrip("/"))
            self._client = httpx.AsyncClient(
                base_url=base, headers=headers, limits=limits, timeout=timeout, transport=transport
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise CannotGoOn(f"--url '{url}' or --api-key cannot be used: {error}") from None
        self._url = url
        self._slots = asyncio.Semaphore(concurrency)
        self._retries = retries
        self._sleep = sleep

    async def __aenter__(self) -> Remote:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def model(self) -> str:
        """The first one listed. Raises CannotGoOn."""
        try:
            listed = await self.ask("GET", "/models")
        except QuestionFailed as error:
            raise CannotGoOn(f"{self._url} does not list its models, name one with --model: {error}") from None
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise CannotGoOn(f"{self._url} lists no model, name one with --model") from None

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer's JSON object. Raises QuestionFailed, Refused or CannotGoOn, the first and the last after all
        retries."""
        async with self._slots:
            for attempt in range(self._retries + 1):
                last = attempt == self._retries
                try:
                    response = await self._client.request(method, path, json=body)
                except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
                    if last or isinstance(error, httpx.UnsupportedProtocol):
                        raise CannotGoOn(f"{self._url} cannot be reached: {error}") from None
                    wait = _backoff(attempt)
                except httpx.RequestError as error:
                    if last:
                        raise QuestionFailed(f"{type(error).__name__}: {error}".rstrip(": ")) from None
                    wait = _backoff(attempt)
                else:
                    if response.is_success:
                        return _object(response)
                    if last or not _may_help(response):
                        raise _error(response)
                    wait = _backoff(attempt) if (told := _retry_after(response)) is None else told
                await self._sleep(wait)
        raise AssertionError("there is at least one attempt")


def _backoff(attempt: int) -> float:
    """Doubles, and differs from client to client."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**attempt) * random.uniform(0.5, 1)


def _may_help(response: httpx.Response) -> bool:
    told = response.headers.get("x-should-retry")  # the header that OpenAI's own clients obey
    if told in ("true", "false"):
        return bool(told == "true")
    return response.status_code in _AGAIN or response.status_code >= 500


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds. None: the server does not say, or nothing that can be understood."""
    told = response.headers.get("retry-after", "")
    if re.fullmatch(r"\d{1,9}(\.\d+)?", told):
        return min(float(told), LONGEST_RETRY_AFTER_S)
    try:
        at = parsedate_to_datetime(told)
    except ValueError:
        return None
    seconds = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise QuestionFailed("the server's answer is no JSON object")
    return body


def _error(response: httpx.Response) -> Exception:
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    said = body.get("error") if isinstance(body, dict) else None
    fields = said if isinstance(said, dict) else {}
    words = fields.get("message") or (said if isinstance(said, str) else response.text.strip()) or "no reason given"
    message = f"HTTP {response.status_code}: {' '.join(str(words).split())[:_QUOTED]}"
    if response.status_code in _HOPELESS:
        return CannotGoOn(message)
    if response.status_code >= 500 or response.status_code in _AGAIN:
        return QuestionFailed(message)
    return Refused(message, str(fields.get("param") or ""))
