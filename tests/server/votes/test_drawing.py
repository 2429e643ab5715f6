"""Between the engine and the vote: samples put in order, endings, traces that are watched, what is left over."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.request import TokenScore
from server.votes.ballot_box import BallotBox
from server.votes.drawing import ConfidenceWatch
from server.votes.endings import Consensus, Stopping, label
from server.votes.pot import Pot, Share
from tests.voting.votes import clusters_of, sample
from voting.answers import equivalence
from voting.answers.equivalence import read_equivalence
from voting.answers.normal import normalise
from voting.contract import VOTING_RULES, Cluster, Sample
from voting.poll import Reading
from voting.rule import read_values
from voting.stopping.watch import read_stop
from voting.trace_confidence import window_means
from voting.trace_monitor import TraceMonitor

READING = Reading(read_equivalence("exact"))


class After:
    """An ending that has enough of so many samples, and remembers what it was shown."""

    def __init__(self, enough: int, flag: str | None = None) -> None:
        self.flag = flag
        self.enough = enough
        self.shown: list[list[int]] = []

    def look(self, samples: Sequence[Sample], clusters: Sequence[Cluster]) -> bool:
        self.shown.append([one.index for one in samples])
        assert sum(len(cluster.members) for cluster in clusters) == sum(not one.abstains for one in samples)
        return len(samples) >= self.enough


def box_of(*endings: After) -> BallotBox:
    return BallotBox(VOTING_RULES.get("sc"), READING, False, endings)


@given(st.permutations(range(7)), st.integers(1, 9), st.data())
def test_samples_are_looked_at_once_in_their_order(order: list[int], enough: int, data: st.DataObject) -> None:
    ending = After(enough, "enough")
    box, closed = box_of(ending), False
    there: set[int] = set()
    while order and not closed:
        size = data.draw(st.integers(1, len(order)))
        arriving, order = order[:size], order[size:]
        there.update(arriving)
        closed = box.put([sample(index, str(index % 2)) for index in arriving])
        prefix = next(n for n in itertools.count() if n not in there)
        assert [one.index for one in box.samples] == list(range(min(prefix, enough)))
    assert closed is box.closed is (enough <= 7)
    assert box.flags == (("enough",) if closed else ())
    assert ending.shown == [list(range(n)) for n in range(1, min(enough, 7) + 1)]


def test_nobody_looks() -> None:
    box = box_of()
    assert not box.watched and not box.put([sample(1, "4"), sample(0, None)])
    assert [(one.index, one.abstain_reason) for one in box.samples] == [(0, "no_answer"), (1, None)]
    with pytest.raises(ValueError, match="finished already"):
        box.put([sample(1, "4")])


def test_flags_of_all_that_close_it() -> None:
    box = box_of(After(3, "a"), After(2), After(2, "b"), After(9, "c"))
    assert box.put([sample(index, "4") for index in range(5)])
    assert box.flags == ("b",) and len(box.samples) == 2


def test_answers_are_normalised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes are many, and answers may be long."""
    asked: list[str] = []

    def counted(answer: str) -> str:
        asked.append(answer)
        return normalise(answer)

    monkeypatch.setattr(equivalence, "normalise", counted)
    given = [f"{index % 5}." for index in range(40)]
    box = box_of(After(99))
    box.put([sample(index, answer) for index, answer in enumerate(given)])
    assert sorted(asked) == sorted(set(given)) and len(box.samples) == 40


# --- endings


@given(st.lists(st.sampled_from(["4", "5", "6", None]), min_size=1, max_size=30))
def test_a_stop_sees_labels_that_do_not_change(answers: list[str | None]) -> None:
    for stop in ("beta", "esc", {"rule": "mode_cert", "alpha": 0.3, "warmup": 1}):
        watch, expected = read_stop(stop).watch(), read_stop(stop).over((answer, 1.0) for answer in answers)
        box = BallotBox(VOTING_RULES.get("sc"), READING, False, [Stopping(watch)])
        assert box.put([sample(index, answer) for index, answer in enumerate(answers)]) is expected.fired
        assert watch.seen == expected.seen == len(box.samples)
        assert watch.report()["value"] == expected.report()["value"]


def test_labels() -> None:
    samples = [sample(0, None), sample(1, "4"), sample(2, "5"), sample(3, "4")]
    assert [label(one, clusters_of(samples)) for one in samples] == [None, 1, 2, 1]


def test_consensus_waits_for_the_warm_up() -> None:
    rule = VOTING_RULES.get("deepconf")
    values = read_values(rule, {"mode": "online", "warmup": 3, "confidence_percentile": 100}, 9)
    ending = Consensus(rule, values)
    same = [sample(index, "4") for index in range(5)]
    assert [ending.look(same[:n], clusters_of(same[:n])) for n in range(1, 6)] == [False] * 3 + [True] * 2
    split = [*same[:3], sample(3, "5"), *same[4:]]
    assert not ending.look(split, clusters_of(split))
    silent = [replace(one, answer=None) for one in same]
    assert not ending.look(silent, [])


# --- traces that are watched


def score(confidences: Sequence[float], k: int) -> list[TokenScore]:
    """Scores of tokens with these confidences over their top k; what lies behind the k is not to be read."""
    draw = random.Random(1)
    scores = []
    for confidence in confidences:
        spread = [draw.uniform(-0.2, 0.2) for _ in range(k - 1)]
        top = [*(one - confidence for one in spread), -confidence - sum(spread)]
        scores.append(TokenScore(-99.0, 5, tuple(enumerate([*sorted(top, reverse=True), -50.0, -60.0])), ((7, -80.0),)))
    return scores


@given(st.lists(st.floats(1, 20), min_size=1, max_size=40), st.integers(1, 12), st.floats(1, 20), st.integers(2, 9))
def test_a_trace_ends_at_its_first_low_window(confidences: list[float], window: int, threshold: float, k: int) -> None:
    watch = ConfidenceWatch(TraceMonitor(window, threshold), k)
    ended = next((at for at, one in enumerate(score(confidences, k), 1) if watch.feed(one)), None)
    full = window_means(confidences, window) if len(confidences) >= window else []
    low = [at for at, mean in enumerate(full, window) if mean < threshold]
    close = [at for at, mean in enumerate(full, window) if abs(mean - threshold) < 1e-9]
    assert ended == (low[0] if low else None) or close
    assert watch.reason == "low_confidence"


# --- what is left over


async def settled(prompts: Sequence[tuple[int, bool]], limit: int, order: Sequence[int]) -> list[Share]:
    pot = Pot(len(prompts), limit)

    async def settle(prompt: int) -> Share:
        for _ in range(order.index(prompt)):
            await asyncio.sleep(0)
        return await pot.settle(prompt, *prompts[prompt])

    return await asyncio.wait_for(asyncio.gather(*map(settle, range(len(prompts)))), 5)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_all_prompts_share_whoever_comes_last(order: tuple[int, ...]) -> None:
    shares = await settled([(4, True), (10, False), (9, True)], 10, order)
    assert shares == [Share(0, 7, 0), Share(7, 7, 0), Share(0, 7, 0)]
    assert shares[1]._asdict() == {"granted": 7, "saved": 7, "unspent": 0}


async def test_nobody_needs_more() -> None:
    assert await settled([(4, True), (5, True)], 10, (0, 1)) == [Share(0, 11, 11)] * 2
    assert await settled([(10, False)], 10, (0,)) == [Share(0, 0, 0)]
    assert await settled([(1, True), (10, False)], 10, (1, 0)) == [Share(0, 9, 0), Share(9, 9, 0)]


async def test_one_that_leaves_takes_nobody_along() -> None:
    pot = Pot(2, 4)
    waiting = asyncio.create_task(pot.settle(0, 2, True))
    leaving = asyncio.create_task(pot.settle(0, 2, True))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await pot.settle(1, 4, False) == Share(2, 2, 0)
    assert await waiting == Share(0, 2, 0)
