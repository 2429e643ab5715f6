"""Requests that are tried again, and those that are not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from server.vote_cli.remote import CannotGoOn, QuestionFailed, Refused, Remote
from tests.server.vote_cli.servers import error

Reply = httpx.Response | Exception


async def asked(*replies: Reply, retries: int = 3) -> tuple[dict[str, object], list[float]]:
    """The answer, and the seconds waited before each further try."""
    left, waits = iter(replies), []

    def answer(request: httpx.Request) -> httpx.Response:
        reply = next(left)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    remote = Remote(
        "http://fake/v1", None, concurrency=1, timeout_s=1, retries=retries,
        transport=httpx.MockTransport(answer), sleep=sleep,
    )  # fmt: skip
    async with remote:
        body = await remote.ask("POST", "/chat/completions", {})
    assert next(left, None) is None
    return body, waits


def good() -> httpx.Response:
    return httpx.Response(200, json={"ok": True})


async def test_waits_double_and_vary() -> None:
    body, waits = await asked(error(500, ""), error(429, ""), httpx.ReadTimeout(""), good())
    assert body == {"ok": True}
    for attempt, wait in enumerate(waits):
        assert 0.25 * 2**attempt <= wait <= 0.5 * 2**attempt


@pytest.mark.parametrize(
    ("told", "low", "high"),
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("999999", 3600, 3600),
        ("soon", 0.25, 0.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
)
async def test_retry_after(told: str, low: float, high: float) -> None:
    _, waits = await asked(error(429, "", **{"retry-after": told}), good())
    assert low <= waits[0] <= high


async def test_retry_after_a_date() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=500), usegmt=True)
    _, waits = await asked(error(503, "", **{"retry-after": at}), good())
    assert 300 <= waits[0] <= 500


async def test_what_a_server_says_about_trying_again_counts() -> None:
    with pytest.raises(QuestionFailed, match="HTTP 500: broken"):
        await asked(error(500, "broken", **{"x-should-retry": "false"}))
    await asked(error(400, "not yet", **{"x-should-retry": "true"}), good())


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (lambda: error(400, "bad 'n'", "n"), Refused, "HTTP 400: bad 'n'"),
        (lambda: httpx.Response(422, text='{"detail": "n"}'), Refused, 'HTTP 422: {"detail": "n"}'),
        (lambda: error(404, "no model"), CannotGoOn, "HTTP 404: no model"),
        (lambda: httpx.Response(200, text="<html>"), QuestionFailed, "no JSON object"),
        (lambda: httpx.UnsupportedProtocol("x"), CannotGoOn, "cannot be reached"),
    ],
)
async def test_what_no_other_try_mends(reply: Callable[[], Reply], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        await asked(reply())


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (lambda: error(503, "busy"), QuestionFailed),
        (lambda: httpx.ReadError(""), QuestionFailed),
        (lambda: httpx.ConnectError("refused"), CannotGoOn),
    ],
)
async def test_tries_come_to_an_end(reply: Callable[[], Reply], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await asked(reply(), reply(), reply(), retries=2)


@pytest.mark.parametrize("url", ["http://[", "http://a b"])
async def test_what_is_no_url(url: str) -> None:
    with pytest.raises(CannotGoOn):
        async with Remote(url, None, concurrency=1, timeout_s=1, retries=0) as remote:
            await remote.model()
