"""One choice: text, tokens and scores stay aligned however the engine's deltas were cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.request import DecodeRequest, Delta, Finish, FinishReason, TokenScore
from samplers.chain import resolve
from server.choice import ChoiceEvent, ChoiceStream, TextOptions
from server.text.codec import TextCodec
from tests.server.live import TINY

CODEC = TextCodec.load(TINY)
EOS = 1
CHAIN = resolve({}, 4096)


def request(**fields: object) -> DecodeRequest:
    given = {"id": "r", "prompt_ids": (1,), "chain": CHAIN, "seed": 0, "max_tokens": 99, "logprobs": 0, **fields}
    return DecodeRequest(eos_token_ids=frozenset({EOS}), **given)  # type: ignore[arg-type]


def deltas(tokens: list[int], cuts: list[int], finish: Finish | None) -> list[Delta]:
    borders = [0, *sorted(cut % (len(tokens) + 1) for cut in cuts), len(tokens)]
    parts = [tokens[a:b] for a, b in pairwise(borders)]
    out = [Delta(0, list(part), [-1.0] * len(part), [TokenScore(-2.0, 1, ()) for _ in part]) for part in parts]
    out[-1].finish = finish
    return out


def run(stream: ChoiceStream, given: list[Delta]) -> list[ChoiceEvent]:
    events: list[ChoiceEvent] = []
    for delta in given:
        if not stream.done:
            events += stream.feed(delta)
    return events


def joined(events: list[ChoiceEvent]) -> tuple[str, list[int], list[int], object]:
    return (
        "".join(event.text for event in events),
        [token for event in events for token in event.token_ids],
        [entry.token for event in events for entry in event.entries],
        events[-1].end,
    )


tokens_of = st.one_of(
    st.text("ab<é€😀 ", max_size=20).map(CODEC.encode_plain), st.lists(st.integers(0, 4095), max_size=20)
)
stop_lists = st.lists(st.text("ab<é ", min_size=1, max_size=4), max_size=3).map(tuple)


@given(tokens_of, st.lists(st.integers(0, 20), max_size=8), stop_lists, st.booleans(), st.sampled_from([None, 1, 3]))
def test_result_does_not_depend_on_how_tokens_arrive(
    tokens: list[int], cuts: list[int], stops: tuple[str, ...], include: bool, interval: int | None
) -> None:
    finish = Finish(FinishReason.LENGTH)
    whole = ChoiceStream(0, CODEC, request(), TextOptions(stops, include))
    expected = joined(run(whole, deltas(tokens, [], finish)))
    events = run(
        ChoiceStream(0, CODEC, request(), TextOptions(stops, include, interval=interval)), deltas(tokens, cuts, finish)
    )
    assert joined(events) == expected
    assert [event.end is not None for event in events] == [False] * (len(events) - 1) + [True]


@given(tokens_of, stop_lists)
def test_listed_tokens_cover_the_text(tokens: list[int], stops: tuple[str, ...]) -> None:
    events = run(ChoiceStream(0, CODEC, request(), TextOptions(stops)), deltas(tokens, [], Finish(FinishReason.LENGTH)))
    text, used, listed, end = joined(events)
    visible = [e.token for event in events for e in event.entries if e.visible]
    covered = b"".join(map(CODEC.token_bytes, visible)).decode("utf-8", "replace")
    if "\ufffd" not in covered:
        assert covered.startswith(text)
        assert end is not None and (covered == text or end.reason == "stop")  # type: ignore[attr-defined]
    assert used[: len(listed)] == listed
    assert end is not None and end.cumulative_logprob == -len(used)  # type: ignore[attr-defined]


def test_eos_ends_without_text_and_is_listed() -> None:
    tokens = [*CODEC.encode_plain("ab"), EOS]
    events = run(
        ChoiceStream(0, CODEC, request(), TextOptions(skip_special=False)),
        deltas(tokens, [], Finish(FinishReason.STOP, EOS)),
    )
    text, used, listed, end = joined(events)
    assert (text, used, listed) == ("ab", tokens, tokens)
    assert end.reason == "stop" and end.stop_reason is None  # type: ignore[attr-defined]


def test_stop_token_ids_are_named_and_shown_only_when_asked() -> None:
    tokens = CODEC.encode_plain("ab cd")
    named = request(stop_token_ids=frozenset({tokens[-1]}))
    for include, text in ((False, CODEC.decode(tokens[:-1])), (True, "ab cd")):
        events = run(
            ChoiceStream(0, CODEC, named, TextOptions(include_stop=include)),
            deltas(tokens, [], Finish(FinishReason.STOP, tokens[-1])),
        )
        assert joined(events)[0] == text
        assert events[-1].end is not None and events[-1].end.stop_reason == tokens[-1]


def test_min_tokens_suppresses_stop_strings() -> None:
    tokens = [CODEC.encode_plain("x")[0]] * 6
    for least, count in ((0, 1), (3, 4)):
        stream = ChoiceStream(0, CODEC, request(min_tokens=least), TextOptions(("x",)))
        text, used, _, _ = joined(run(stream, deltas(tokens, [1, 2, 3, 4, 5], Finish(FinishReason.LENGTH))))
        assert len(used) == count and text == "x" * (count - 1)


def test_every_token_has_its_event_when_asked() -> None:
    tokens = CODEC.encode_plain("a 😀 b")
    stream = ChoiceStream(0, CODEC, request(), TextOptions(interval=1))
    events = run(stream, deltas(tokens, [], None))
    assert [event.token_ids for event in events] == [[token] for token in tokens]


def test_a_failed_choice_keeps_its_text_and_says_why() -> None:
    stream = ChoiceStream(0, CODEC, request(), TextOptions())
    finish = Finish(FinishReason.ERROR, error_code="constraint_unsatisfiable", message="nothing left")
    events = run(stream, deltas(CODEC.encode_plain("ab"), [], finish))
    text, _, _, end = joined(events)
    assert text == "ab"
    assert end.failure == {"code": "constraint_unsatisfiable", "message": "nothing left"}  # type: ignore[attr-defined]
    assert (end.reason, end.stop_reason) == ("length", "error")  # type: ignore[attr-defined]
