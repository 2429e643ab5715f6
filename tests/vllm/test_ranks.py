"""Which rank a request goes to. Needs no vLLM."""

from __future__ import annotations

from collections.abc import Sequence

from engine.request import DecodeRequest
from engine.runners.vllm.ranks import Ranks
from tests.vllm.requests import decode_request

PAGE = 4


def ranks(number: int = 3, remembered: int = 100) -> Ranks:
    return Ranks(number, PAGE, remembered)


def request(prompt: Sequence[int] = (), n: int = 1, session: str = "", salt: str = "") -> DecodeRequest:
    return decode_request(prompt_ids=tuple(prompt) or (1,), n=n, session=session, cache_salt=salt)


def test_strangers_are_shared_out() -> None:
    found = ranks()
    assert [found.enter(request()) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_the_emptiest_rank_is_taken() -> None:
    found = ranks()
    busy = request(n=5)
    assert found.enter(busy) == 0
    assert [found.enter(request()) for _ in range(5)] == [1, 2, 1, 2, 1]
    found.leave(busy, 0)
    assert found.enter(request()) == 0


def test_a_longer_prompt_follows_its_first_pages() -> None:
    found = ranks()
    turn = list(range(10))
    first = found.enter(request(turn))
    found.enter(request())
    assert found.enter(request([*turn, *range(50, 60)])) == first
    assert found.enter(request([*turn[:PAGE], 99, 98, 97, 96])) == first


def test_the_longest_prefix_decides() -> None:
    found = ranks()
    base = list(range(PAGE))
    assert found.enter(request([*base, *base], n=20)) == 0
    assert found.enter(request(base)) == 1  # its rank is busy, so the pages of `base` move on
    assert found.enter(request([*base, 7, 7, 7, 7])) == 1


def test_less_than_a_page_ties_to_nobody() -> None:
    found = ranks()
    assert found.enter(request(range(PAGE - 1))) != found.enter(request(range(PAGE - 1)))


def test_a_session_counts_more_than_the_prompt() -> None:
    found = ranks()
    prompt = list(range(PAGE))
    assert found.enter(request(session="a")) == 0
    assert found.enter(request(prompt)) == 1
    assert found.enter(request(prompt, session="a")) == 0


def test_salts_share_nothing() -> None:
    found = ranks()
    prompt = list(range(PAGE))
    places = [found.enter(request(prompt, session="a", salt=salt)) for salt in ("", "x", "y")]
    assert places == [0, 1, 2]


def test_a_pin_does_not_hold_when_its_rank_has_more_than_twice_the_others() -> None:
    found = ranks(2)
    held = [request(session="a", n=4) for _ in range(3)]
    assert [found.enter(one) for one in held] == [0, 0, 0]  # 8 are no load yet, 12 are
    assert found.enter(request(session="a", n=4)) == 1
    assert found.enter(request(session="a", n=4)) == 1  # and the session stays where it went
    for one in held:
        found.leave(one, 0)
    assert found.enter(request(session="a")) == 1


def test_a_pin_holds_among_equally_busy_ranks() -> None:
    found = ranks(2)
    assert found.enter(request(session="a", n=20)) == 0
    assert found.enter(request(session="b", n=20)) == 1
    assert [found.enter(request(session=name)) for name in "abab"] == [0, 1, 0, 1]


def test_what_was_used_longest_ago_is_forgotten() -> None:
    found = ranks(remembered=2)
    for name in "abc":
        found.enter(request(session=name))
    assert found.enter(request(session="b")) == 1
    assert found.enter(request(session="a")) == 0  # emptiest: nobody knows it any more
    assert found.enter(request(session="c")) == 2


def test_one_rank_needs_no_keys() -> None:
    found = ranks(1)
    assert [found.enter(request(range(8), session="a")) for _ in range(20)] == [0] * 20
