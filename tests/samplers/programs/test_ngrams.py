"""N-gram tables against counting by hand: whatever the chunks, on disk or not."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from samplers.programs.ngram_counter import NgramCounter
from samplers.programs.ngrams import HIGHEST, LOWEST, NOWHERE, NgramError, NgramTables

VOCABULARY = 7
WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12)
Texts = list[list[int]]


def random_texts(seed: int, count: int = 12, longest: int = 40) -> Texts:
    rng = np.random.default_rng(seed)
    return [rng.integers(VOCABULARY, size=rng.integers(longest + 1)).tolist() for _ in range(count)]


def tables_of(texts: Texts, highest: int = HIGHEST, chunk: int = 2**20, piece: int = 10**6) -> NgramTables:
    counter = NgramCounter(VOCABULARY, highest, chunk)
    for text in texts:
        for start in range(0, len(text), piece):
            counter.add(text[start : start + piece])
        counter.end_text()
    return counter.tables("a tokenizer")


def counted(texts: Texts, order: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(text[i : i + order]) for text in texts for i in range(len(text) - order + 1))


def listed(tables: NgramTables) -> list[dict[tuple[int, ...], int]]:
    """Every n-gram with its count, by order."""
    names, found = [(token,) for token in range(tables.vocabulary)], []
    for level in tables.levels:
        names = [(*names[key // tables.vocabulary], key % tables.vocabulary) for key in level.keys.tolist()]
        found.append(dict(zip(names, level.counts.tolist(), strict=True)))
    return found


def contexts_of(texts: Texts) -> np.ndarray:
    width = HIGHEST - 1
    return np.array([([NOWHERE] * width + text)[-width:] for text in texts])


@pytest.mark.parametrize("chunk", [1, 3, 17, 2**20])
@pytest.mark.parametrize("piece", [1, 5, 10**6])
def test_counts_are_exact_whatever_the_chunks(chunk: int, piece: int) -> None:
    texts = [*random_texts(chunk + piece), [], [1], [1, 2], [3] * 30]
    found = listed(tables_of(texts, chunk=chunk, piece=piece))
    assert found == [counted(texts, order) for order in range(LOWEST, HIGHEST + 1)]


@pytest.mark.parametrize("highest", [2, 4, 6])
def test_probability_is_the_formula(highest: int) -> None:
    texts = random_texts(1)
    tables = tables_of(texts, highest)
    some = [[], [2], [9], [1, 9, 2], *random_texts(2, 30, 8), *(text[:7] for text in texts)]
    candidates = np.array([6, 0, 3, 99, 1])
    by_hand = np.zeros((len(some), len(candidates)))
    for order, weight in zip(range(LOWEST, highest + 1), WEIGHTS, strict=False):
        counts = counted(texts, order)
        followed: Counter[tuple[int, ...]] = Counter()
        for gram, count in counts.items():
            followed[gram[:-1]] += count
        for row, text in enumerate(some):
            context = tuple(text[-(order - 1) :])
            for column, token in enumerate(candidates.tolist()):
                if followed[context]:
                    by_hand[row, column] += weight * counts[(*context, token)] / followed[context]
    found = tables.probability(contexts_of(some), candidates, WEIGHTS)
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)
    assert (by_hand > 0).sum() > 50


def test_a_context_seen_in_every_order_gives_the_whole_weight() -> None:
    text = random_texts(3, 1, 40)[0] + [1, 2, 3, 4, 5, 6]
    found = tables_of([text]).probability(contexts_of([[1, 2, 3, 4, 5]]), np.arange(VOCABULARY), WEIGHTS)
    assert found.sum() == pytest.approx(sum(WEIGHTS))


def test_a_file_holds_the_same(tmp_path: Path) -> None:
    tables = tables_of(random_texts(4), highest=5)
    path = tmp_path / "tables"  # keeps the name it was given
    tables.save(path)
    loaded = NgramTables.load(path)
    assert (loaded.vocabulary, loaded.fingerprint, loaded.orders) == (VOCABULARY, "a tokenizer", (2, 3, 4, 5))
    assert listed(loaded) == listed(tables)
    contexts = contexts_of(random_texts(5))
    expected = tables.probability(contexts, np.arange(VOCABULARY), WEIGHTS)
    assert (loaded.probability(contexts, np.arange(VOCABULARY), WEIGHTS) == expected).all()


def test_mapped_tables_are_aligned(tmp_path: Path) -> None:
    """Otherwise every bisection copies a whole table first."""
    path = tmp_path / "counts.npz"
    tables_of(random_texts(4)).save(path)
    loaded = NgramTables.load(path)
    assert all(part.ctypes.data % 64 == 0 for level in loaded.levels for part in (level.keys, level.ends))


def test_tables_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.npz"
    tables_of([]).save(path)
    assert not NgramTables.load(path).probability(contexts_of([[1, 2]]), np.arange(3), WEIGHTS).any()


def test_tables_of_another_tokenizer_are_refused() -> None:
    tables = tables_of([[1, 2]])
    tables.check(VOCABULARY, "a tokenizer")
    for vocabulary, fingerprint in ((VOCABULARY + 1, "a tokenizer"), (VOCABULARY, "another")):
        with pytest.raises(NgramError, match="another tokenizer"):
            tables.check(vocabulary, fingerprint)


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = tmp_path / "whole"
    tables_of(random_texts(6)).save(whole)
    for content in (b"", b"text", whole.read_bytes()[:-100]):
        path.write_bytes(content)
        with pytest.raises(NgramError, match="holds no n-grams"):
            NgramTables.load(path)
    for arrays in ({"a": np.arange(3)}, {"format": np.array([{}], dtype=object)}):
        np.savez(tmp_path / "other.npz", **arrays)
        with pytest.raises(NgramError):
            NgramTables.load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        NgramTables.load(tmp_path / "nothing")


def test_what_cannot_be_counted_is_refused() -> None:
    for arguments in ((VOCABULARY, 1), (VOCABULARY, 7), (2**30, 6), (0, 6)):
        with pytest.raises(ValueError):
            NgramCounter(*arguments)
    for ids in ([VOCABULARY], [-1]):
        with pytest.raises(ValueError, match="token id"):
            NgramCounter(VOCABULARY).add(ids)


def test_a_large_lookup_takes_milliseconds() -> None:
    counter = NgramCounter(50_000)
    counter.add(np.random.default_rng(7).zipf(1.3, 200_000) % 50_000)
    tables = counter.tables("")
    contexts = np.random.default_rng(8).integers(100, size=(10, HIGHEST - 1))
    best = min(_seconds(tables, contexts) for _ in range(5))
    assert best < 0.05  # 10 drafts, 1000 candidates, 5 orders; a loop in Python takes seconds


def _seconds(tables: NgramTables, contexts: np.ndarray) -> float:
    began = time.perf_counter()
    tables.probability(contexts, np.arange(1000), WEIGHTS)
    return time.perf_counter() - began
