"""Rankings of tokens by their counts, their files, and draft rows over a part of the vocabulary."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spec_decode.token_ranking import RankingError, TokenRanking, count_tokens, needed_tokens

WORDS = [b"a", b"b", b" the", b"", b" cat", b"\xff", b" sat", b"zebra"]  # token 3 is special
texts = st.lists(st.lists(st.integers(0, 7), max_size=30), max_size=5)


def encode(text: str) -> list[int]:
    return [int(letter) for letter in text]


@settings(max_examples=150, deadline=None)
@given(texts, st.sets(st.integers(0, 7)), st.integers(1, 8))
def test_the_ranking_by_its_definition(found: list[list[int]], kept: set[int], size: int) -> None:
    counted = Counter(token for text in found for token in text)
    counts = count_tokens(("".join(map(str, text)) for text in found), encode, 8)
    assert counts.tolist() == [counted[token] for token in range(8)]
    ranking = TokenRanking.of(counts, kept, "f")
    rest = sorted(set(range(8)) - kept, key=lambda token: (-counted[token], token))
    assert ranking.ids.tolist() == [*sorted(kept), *rest]
    assert ranking.counts.tolist() == [counted[token] for token in ranking.ids.tolist()]
    covered = sum(counted[token] for token in ranking.ids[:size].tolist())
    assert ranking.coverage(size) == pytest.approx(covered / max(sum(counted.values()), 1))
    if size >= len(kept):
        ids = ranking.subset(size).ids.tolist()
        assert ids == sorted(ids) and set(ids) == {*kept, *rest[: size - len(kept)]}
    else:
        with pytest.raises(RankingError, match=f"{len(kept)} to 8"):
            ranking.subset(size)


def test_special_tokens_and_bytes_are_needed() -> None:
    assert needed_tokens(WORDS, {3}) == {0, 1, 3, 5}


def test_ids_outside_of_the_vocabulary_are_refused() -> None:
    for text in (["8"], ["0", "9"]):
        with pytest.raises(ValueError, match="not in"):
            count_tokens(text, encode, 8)
    with pytest.raises(ValueError):
        count_tokens(["x"], lambda text: [-1], 8)


def test_files_come_back_and_belong_to_one_tokenizer(tmp_path: Path) -> None:
    ranking = TokenRanking.of(np.array([3, 0, 5, 0]), {1}, "mine")
    path = tmp_path / "ranking.npz"
    ranking.save(path)
    loaded = TokenRanking.load(path)
    assert loaded.ids.tolist() == [1, 2, 0, 3] and loaded.counts.tolist() == [0, 5, 3, 0]
    assert (loaded.kept, loaded.fingerprint) == (1, "mine")
    loaded.check(4, "mine")
    for vocabulary, fingerprint in ((5, "mine"), (4, "other")):
        with pytest.raises(RankingError, match="another tokenizer"):
            loaded.check(vocabulary, fingerprint)


@pytest.mark.parametrize(
    "arrays",
    [
        {"format": np.array("drafthouse n-grams 2")},
        {"ids": np.array([0, 0])},
        {"ids": np.array([0, 2])},
        {"counts": np.array([1])},
        {"ids": np.array(["a", "b"])},
        {"kept": np.array("many")},
    ],
)
def test_other_files_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "file.npz"
    TokenRanking.of(np.array([3, 1]), (), "f").save(path)
    TokenRanking.load(path)
    with np.load(path) as file:
        good = dict(file)
    np.savez(path, **good | arrays)
    with pytest.raises(RankingError, match="no ranking"):
        TokenRanking.load(path)
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(RankingError, match="no ranking"):
        TokenRanking.load(path)
    np.save(path.with_suffix(".npy"), np.arange(3))
    with pytest.raises(RankingError, match="no ranking"):
        TokenRanking.load(path.with_suffix(".npy"))
    with pytest.raises(OSError):
        TokenRanking.load(tmp_path / "missing.npz")


def test_draft_rows_come_back_as_whole_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    weights, hidden = torch.randn(8, 5, generator=generator), torch.randn(4, 5, generator=generator)
    ranking = TokenRanking.of(np.array([3, 9, 1, 0, 7, 0, 2, 5]), {3}, "f")
    part = ranking.subset(4)
    assert part.ids.tolist() == [1, 3, 4, 7] and len(part) == 4
    q = (hidden @ part.head(weights).T).softmax(-1)
    whole = part.spread(q)
    full = (hidden @ weights.T).softmax(-1)
    torch.testing.assert_close(whole.sum(-1), torch.ones(4))
    assert (whole[:, [0, 2, 5, 6]] == 0).all()
    torch.testing.assert_close(whole[:, part.ids], full[:, part.ids] / full[:, part.ids].sum(-1, keepdim=True))
    assert part.to_target(q.argmax(-1)).tolist() == whole.argmax(-1).tolist()
    everything = ranking.subset(8)
    torch.testing.assert_close(everything.spread((hidden @ everything.head(weights).T).softmax(-1)), full)


def test_a_prompt_adds_its_tokens() -> None:
    part = TokenRanking.of(np.array([3, 9, 1, 0, 7, 0, 2, 5]), {3}, "f").subset(4)
    assert part.with_tokens([7, 0, 0, 5]).ids.tolist() == [0, 1, 3, 4, 5, 7]
    assert part.with_tokens([]).ids.tolist() == part.ids.tolist()
