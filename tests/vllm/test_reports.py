"""Reports from the processor to the runner, on one machine and over a network. Needs no vLLM."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.request import TokenScore
from engine.runners.vllm.reports import Account, Report, ReportInbox, ReportSender
from samplers.trace import Candidate, DrawTrace, StageTrace, TokenTrace

TOKENS = (5, 6, 7, 8)  # of a choice, as far as they are known
FIRST = Report("a/0", 3, "constraint_unsatisfiable", "no token ✗")
SCORE = TokenScore(-1.2345678806304932, 2, ((4, -0.5), (7, -math.inf)), ((9, -3.0),))
STAGE = StageTrace("top_p", (60, 2), 0.1, (1.5, 0.5), (0.25, 0.5), (Candidate(5, 0.25, 0.5),), (0.125,))
TRACE = TokenTrace(5, 0.25, 60, 1.5, ((5, 0.25),), (STAGE,), DrawTrace("iid", (0.75,), (0.5, 1.0)))


@pytest.fixture(params=["local", "network"])
def inbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReportInbox]:
    found = ReportInbox(str(tmp_path / "reports") if request.param == "local" else ("127.0.0.1", 0))
    found.expect("a/0")
    yield found
    found.close()


def test_what_is_sent_is_there_when_send_returns(inbox: ReportInbox) -> None:
    sender = ReportSender(inbox.address)
    for number in range(50):
        inbox.expect(f"b/{number}")
        sender.send([Report(f"b/{number}", number, "internal_error", "x")])
        report = inbox.of(f"b/{number}", TOKENS, number)
        assert report is not None and report.position == number


def test_the_first_report_of_a_choice_counts_whoever_sends_it(inbox: ReportInbox) -> None:
    ReportSender(inbox.address).send([FIRST])
    ReportSender(inbox.address).send([Report("a/0", 4, "internal_error", "later")])
    assert inbox.of("a/0", TOKENS, 0) == FIRST


def test_a_report_behind_a_draft_counts_if_the_draft_came(inbox: ReportInbox) -> None:
    ReportSender(inbox.address).send([Report("a/0", 2, "internal_error", "", after=(6,))])
    assert inbox.of("a/0", (5, 7, 7), 0) is None
    assert inbox.of("a/0", (5, 6, 7), 0) is not None


def test_accounts_arrive_as_they_were_and_once(inbox: ReportInbox) -> None:
    one, other = Account("a/0", 1, SCORE, TRACE), Account("a/0", 0, SCORE)
    ReportSender(inbox.address).send([one, other, FIRST])
    assert inbox.account("a/0", 1) == one and inbox.account("a/0", 0) == other
    assert inbox.account("a/0", 1) is None and inbox.account("a/0", 2) is None
    assert inbox.of("a/0", TOKENS, 0) == FIRST


def test_nothing_is_kept_of_choices_that_do_not_run(inbox: ReportInbox) -> None:
    inbox.forget("a/0")
    ReportSender(inbox.address).send([FIRST, Account("a/0", 0, SCORE)])
    inbox.expect("a/0")
    assert inbox.of("a/0", TOKENS, 0) is None and inbox.account("a/0", 0) is None


def test_noise_ends_its_connection_only(inbox: ReportInbox) -> None:
    with socket.socket(socket.AF_UNIX if isinstance(inbox.address, str) else socket.AF_INET) as stranger:
        stranger.connect(inbox.address)
        stranger.sendall(b"GET / HTTP/1.1\r\n")
        assert stranger.recv(1) == b""
    ReportSender(inbox.address).send([FIRST])
    assert inbox.of("a/0", TOKENS, 0) == FIRST


def test_a_connection_that_was_lost_is_made_again(inbox: ReportInbox) -> None:
    sender = ReportSender(inbox.address)
    sender.send([Account("a/0", 0, SCORE)])
    assert sender._socket is not None
    sender._socket.shutdown(socket.SHUT_RDWR)
    sender.send([FIRST])
    assert inbox.of("a/0", TOKENS, 0) == FIRST


def test_an_inbox_that_has_closed_is_an_error(inbox: ReportInbox) -> None:
    inbox.close()
    with pytest.raises(OSError):
        ReportSender(inbox.address).send([FIRST])
