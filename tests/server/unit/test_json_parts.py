"""JSON that is encoded part by part is the JSON of the whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import jsontext
from server.jsontext import dumps, dumps_in_parts

NAMES = st.sampled_from(["choices", "sample_records", "voting", "a", 'q"uote'])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4))


@given(VALUES)
def test_the_bytes_are_those_of_the_whole(value: Any) -> None:
    assert dumps_in_parts(value) == dumps(value)


@pytest.mark.parametrize("several", [False, True], ids=["one prompt", "several"])
def test_long_lists_are_encoded_item_by_item(monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    pieces: list[int] = []

    def noted(value: Any) -> bytes:
        pieces.append(len(dumps(value)))
        return dumps(value)

    monkeypatch.setattr(jsontext, "dumps", noted)
    vote = {"rule": "sc", "sample_records": [{"text": "x" * 100}] * 50}
    body = {"choices": [{"text": "y" * 100}] * 50, "drafthouse": {"voting": [vote, vote] if several else vote}}
    assert len(dumps_in_parts(body)) > 10_000 and max(pieces) < 200
