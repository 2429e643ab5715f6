"""Two thousand requests of every shape, a third of them abandoned: nothing is held, nothing grows, nothing is wrong."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest

from bench.server_process import metrics
from bench.soak import KV_BYTES, Report, soak
from tests.acceptance.process import Server

pytestmark = pytest.mark.slow
REQUESTS, CONCURRENCY, SEED = 2000, 32, 1
GROWTH_MIB = 40  # measured: 0 to 6 in repeated runs
LOGGED_S = 5.0
FALSE_500 = 'drafthouse_http_requests_total{route="/v1/completions",status="500"}'
LEFT = 'drafthouse_http_requests_total{route="/v1/completions",status="499"}'


class Soaked(NamedTuple):
    """The server after the soak, and what was found."""

    server: Server
    report: Report


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soaked]:
    """Memory for a few requests only, so that eviction and preemption take part."""
    server = Server(tmp_path_factory.mktemp("soak") / "log.txt", "--kv-bytes", str(KV_BYTES))
    try:
        server.wait_ready()
        yield Soaked(server, soak(server.url, server.pid, REQUESTS, CONCURRENCY, SEED))
        server.terminate()
        assert server.exit_code() == 0, server.output()
    finally:
        server.process.kill()


def test_every_answer_is_right(soaked: Soaked) -> None:
    report = soaked.report
    assert not report.faults, "\n".join(report.faults[:10])
    assert report.outcomes.total() == REQUESTS
    for name, least in (("left", 400), ("refused", 100), ("scored", 80), ("streamed", 300), ("whole", 300)):
        assert report.outcomes[name] >= least, f"the soak has lost its variety: {report.outcomes}"


def test_nothing_is_held(soaked: Soaked) -> None:
    report = soaked.report
    assert not report.held and report.fits, report.pages
    assert report.preemptions > 0, "memory was never short"


def test_memory_does_not_grow(soaked: Soaked) -> None:
    assert soaked.report.growth < GROWTH_MIB * 2**20, [size / 2**20 for size in soaked.report.rss]


def test_greedy_tokens_are_as_before(soaked: Soaked) -> None:
    assert soaked.report.same_tokens


def test_client_that_leaves_while_sending_is_not_a_server_error(soaked: Soaked) -> None:
    url = urlsplit(soaked.server.url)
    before = metrics(soaked.server.url)
    with socket.create_connection((url.hostname, url.port)) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.2)
    deadline = time.monotonic() + LOGGED_S
    while (now := metrics(soaked.server.url)).get(LEFT) == before.get(LEFT) and time.monotonic() < deadline:
        assert now.get(FALSE_500) == before.get(FALSE_500)
        time.sleep(0.05)
    assert now[LEFT] == before[LEFT] + 1
    assert "Traceback" not in soaked.server.output()


def test_still_served(soaked: Soaked) -> None:
    assert httpx.get(f"{soaked.server.url}/health").status_code == 200
