"""Reports from the processor to the runner, on one machine and over a network. Needs no vLLM."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.runners.vllm.reports import Report, ReportInbox, ReportSender

TOKENS = (5, 6, 7, 8)  # of a choice, as far as they are known
FIRST = Report("a/0", 3, "constraint_unsatisfiable", "no token ✗")


@pytest.fixture(params=["local", "network"])
def inbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReportInbox]:
    found = ReportInbox(str(tmp_path / "reports") if request.param == "local" else ("127.0.0.1", 0))
    yield found
    found.close()


def test_what_is_sent_is_there_when_send_returns(inbox: ReportInbox) -> None:
    sender = ReportSender(inbox.address)
    for number in range(50):
        sender.send(Report(f"a/{number}", number, "internal_error", "x"))
        report = inbox.of(f"a/{number}", TOKENS, number)
        assert report is not None and report.position == number


def test_the_first_report_of_a_choice_counts_whoever_sends_it(inbox: ReportInbox) -> None:
    ReportSender(inbox.address).send(FIRST)
    ReportSender(inbox.address).send(Report("a/0", 4, "internal_error", "later"))
    assert inbox.of("a/0", TOKENS, 0) == FIRST
    inbox.forget("a/0")
    assert inbox.of("a/0", TOKENS, 0) is None


def test_what_nobody_asks_for_is_not_kept_for_ever(inbox: ReportInbox) -> None:
    sender = ReportSender(inbox.address)
    for number in range(4097):
        sender.send(Report(f"a/{number}", 0, "internal_error", ""))
    assert inbox.of("a/0", TOKENS, 0) is None and inbox.of("a/4096", TOKENS, 0) is not None


def test_noise_ends_its_connection_only(inbox: ReportInbox) -> None:
    with socket.socket(socket.AF_UNIX if isinstance(inbox.address, str) else socket.AF_INET) as stranger:
        stranger.connect(inbox.address)
        stranger.sendall(b"GET / HTTP/1.1\r\n")
        assert stranger.recv(1) == b""
    ReportSender(inbox.address).send(FIRST)
    assert inbox.of("a/0", TOKENS, 0) == FIRST


def test_an_inbox_that_has_closed_is_an_error(inbox: ReportInbox) -> None:
    inbox.close()
    with pytest.raises(OSError):
        ReportSender(inbox.address).send(FIRST)


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port}, for reports from other machines"):
            ReportInbox(("127.0.0.1", port))
