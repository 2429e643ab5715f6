"""The store of votes: who sees what, for how long, and what goes first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from server.errors import ApiError
from server.votes.request import read_vote
from server.votes.result import Held, Result
from server.votes.store import StoredVote, VoteStore
from tests.voting.votes import samples_of, vote
from voting.answers.equivalence import Equivalence
from voting.poll import Reading
from voting.sessions import VoteSession, finder
from voting.verdicts import Verdict

SAMPLES = samples_of(("7", 0.5), ("7", 0.4), ("8", 0.3))
OUTCOME = vote("sc", SAMPLES)
HELD = Held(read_vote({}, 16), Result(OUTCOME, {}, None), Reading(Equivalence()), {"prompt": 0})
SESSION = VoteSession(OUTCOME, finder(OUTCOME, Equivalence()))
ACCEPT = Verdict("cluster", 0, "accept", None, 1.0, "ann")
REJECT = replace(ACCEPT, verdict="reject")


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def one(store: VoteStore, name: str, owner: str = "", response: bytes | None = None) -> StoredVote:
    now = store.clock()
    return StoredVote(name, owner, now, now + store.ttl_s, "m", HELD, SESSION, {}, response)


def filled(store: VoteStore, *names: str) -> list[StoredVote]:
    votes = [one(store, name) for name in names]
    for each in votes:
        store.add(each)
    return votes


def names(store: VoteStore, *asked: str) -> str:
    """Those of the names that are still there."""

    def there(name: str) -> bool:
        try:
            return store.find(name, "").id == name
        except ApiError as error:
            assert (error.status, error.code) == (404, "vote_not_found")
            return False

    return "".join(filter(there, asked))


def test_votes_of_others_are_not_there() -> None:
    store = VoteStore()
    store.add(one(store, "a", "ann"))
    assert store.find("a", "ann").id == "a"
    for name, owner in (("a", "bob"), ("a", ""), ("b", "ann")):
        with pytest.raises(ApiError) as caught:
            store.find(name, owner)
        assert (caught.value.status, caught.value.code) == (404, "vote_not_found")


def test_votes_expire_whatever_is_said_about_them() -> None:
    clock = Clock()
    store = VoteStore(ttl_s=10, clock=clock)
    (a,) = filled(store, "a")
    clock.now += 9
    filled(store, "b")
    store.change(a, SESSION.after(REJECT))
    assert names(store, *"ab") == "ab" and len(store) == store.open == 2
    clock.now += 1
    assert names(store, *"ab") == "b" and len(store) == store.open == 1
    with pytest.raises(ApiError):
        store.change(a, SESSION)
    clock.now += 9
    assert len(store) == 0


def test_the_first_that_was_closed_goes_first_then_the_oldest() -> None:
    store = VoteStore(most=4)
    _, b, c, _ = filled(store, *"abcd")
    for each in (c, b):
        store.change(each, SESSION.after(ACCEPT))
    assert store.open == 2
    for new, left in (("e", "abde"), ("f", "adef"), ("g", "defg"), ("h", "efgh")):
        filled(store, new)
        assert names(store, *"abcdefgh") == left


def test_memory_is_bounded_and_what_verdicts_add_counts() -> None:
    size = one(VoteStore(), "a", response=b"x" * 1000).size
    assert size > 1000 and one(VoteStore(), "a").size == size - 1000
    store = VoteStore(most_bytes=3 * size)
    votes = [one(store, name, response=b"x" * 1000) for name in "abcd"]
    for each in votes[:3]:
        store.add(each)
    assert names(store, *"abc") == "abc"
    store.change(votes[2], SESSION.after(REJECT))  # its log is in the way of the oldest
    assert names(store, *"abc") == "bc"
    store.add(votes[3])
    assert names(store, *"abcd") == "cd"


def test_a_vote_that_would_take_everything_is_refused_and_costs_nobody_else() -> None:
    store = VoteStore(most_bytes=one(VoteStore(), "a").size + 1000)
    (a,) = filled(store, "a")
    with pytest.raises(ApiError) as caught:
        store.add(one(store, "b", response=b"x" * 2000))
    assert (caught.value.status, caught.value.code) == (400, "vote_too_large")
    with pytest.raises(ApiError):
        store.change(a, SESSION.after(replace(ACCEPT, verdict="correct", value="x" * 1000)))
    assert store.find("a", "").session == SESSION and store.open == 1
    store.change(a, SESSION.after(REJECT))
    assert store.find("a", "").session.log == (REJECT,)


def test_what_is_dropped_is_no_longer_counted() -> None:
    """Otherwise the store would fill up for good."""
    clock = Clock()
    store = VoteStore(ttl_s=1, most=2, most_bytes=2 * one(VoteStore(), "a").size, clock=clock)
    for _ in range(50):
        (a, _) = filled(store, "a", "b")
        store.change(a, replace(SESSION, status="accepted", decided=0))
        assert (len(store), store.open) == (2, 1)
        clock.now += 1
    assert (len(store), store.open) == (0, 0)


def test_sizes_follow_the_samples() -> None:
    longer = vote("sc", [replace(SAMPLES[0], text="x" * 10_000), *SAMPLES[1:]])
    grown = replace(one(VoteStore(), "a"), held=replace(HELD, result=replace(HELD.result, outcome=longer)))
    assert grown.size > one(VoteStore(), "a").size + 9_000
