"""Measures of texts on texts whose values are known."""

from __future__ import annotations

import math

import pytest

from bench.text_measures import SMALLEST, distinct, majority, ngrams, repeated, self_bleu

A = [1, 2, 3, 4, 5, 6]


def test_ngrams_are_all_runs() -> None:
    assert ngrams([1, 2, 3], 2) == [(1, 2), (2, 3)]
    assert ngrams([1, 2, 3], 3) == [(1, 2, 3)]
    assert ngrams([1, 2, 3], 4) == []


def test_distinct_counts_over_all_texts_together() -> None:
    assert distinct([[1, 2, 1, 2]], 1) == 0.5
    assert distinct([[1, 2, 1, 2]], 2) == pytest.approx(2 / 3)  # 12 21 12
    assert distinct([A, A], 3) == 0.5
    assert distinct([[1, 2], [3, 4]], 1) == 1.0


def test_distinct_of_nothing_is_not_defined() -> None:
    assert distinct([], 1) is None
    assert distinct([[1], [2]], 2) is None


def test_repeated_is_the_share_of_ngrams_seen_before() -> None:
    assert repeated(A) == 0.0
    assert repeated([7] * 10) == pytest.approx(6 / 7)  # seven 4-grams, one of them new
    assert repeated([1, 2, 3, 4, 9, 1, 2, 3, 4]) == pytest.approx(1 / 6)
    assert repeated([1, 2, 3]) is None


def test_self_bleu_of_equal_texts_is_one() -> None:
    assert self_bleu([A, A, A]) == pytest.approx(1.0)


def test_self_bleu_of_texts_without_a_common_token_is_all_smoothing() -> None:
    other = [11, 12, 13, 14, 15, 16]
    floor = math.prod((SMALLEST / count) ** 0.25 for count in (6, 5, 4, 3))
    assert self_bleu([A, other]) == pytest.approx(floor)


def test_self_bleu_by_hand() -> None:
    # matches of the first: 5 of 6 tokens, 4 of 5, 3 of 4, 2 of 3; equal lengths; the other way round the same
    expected = (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert self_bleu([A, [1, 2, 3, 4, 5, 9]]) == pytest.approx(expected)


def test_self_bleu_clips_counts_and_punishes_short_texts() -> None:
    # [1]*4 beside [1]*6: all its n-grams match, brevity exp(1 - 6/4); the longer: 4/6, 3/5, 2/4, 1/3
    short, long = math.exp(1 - 6 / 4), (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert self_bleu([[1] * 4, [1] * 6]) == pytest.approx((short + long) / 2)


def test_self_bleu_takes_the_best_reference_of_each_ngram() -> None:
    alone = self_bleu([A, [9] * 6])
    with_twin = self_bleu([A, [9] * 6, A])
    assert alone is not None and with_twin is not None and with_twin > 0.6 > alone


def test_self_bleu_leaves_out_texts_without_a_4gram() -> None:
    assert self_bleu([A, A, [1, 2]]) == pytest.approx(1.0)
    assert self_bleu([A, [1, 2]]) is None


def test_majority_takes_the_first_among_equals_and_ignores_none() -> None:
    assert majority([3, 5, 5]) == 5
    assert majority([3, 5]) == 3
    assert majority([None, None, 4]) == 4
    assert majority([None]) is None
    assert majority([]) is None
