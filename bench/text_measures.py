"""How varied and how repetitive generated texts are. Texts are sequences of token ids, without what ended them.

Knows nothing about models or samplers. None stands for "not defined": a text too short to hold one n-gram.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

Text = Sequence[int]
SMALLEST = 0.1  # matches a BLEU order without any counts as; otherwise one missing 4-gram makes the whole score 0


def ngrams(text: Text, n: int) -> list[tuple[int, ...]]:
    return list(zip(*(text[i:] for i in range(n)), strict=False))


def distinct(texts: Iterable[Text], n: int) -> float | None:
    """Different n-grams over all n-grams of these texts together (Li et al., arXiv 1510.03055)."""
    all_of_them = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(all_of_them)) / len(all_of_them) if all_of_them else None


def repeated(text: Text, n: int = 4) -> float | None:
    """Share of a text's n-grams that occurred in it before: seq-rep-n (Welleck et al., arXiv 1908.04319)."""
    one = distinct([text], n)
    return None if one is None else 1.0 - one


def self_bleu(texts: Sequence[Text], order: int = 4) -> float | None:
    """Mean BLEU of each text with all others as references (Zhu et al., arXiv 1802.01886); 1: they are all equal.

    Uniform weights up to `order`, the closest reference's length for the brevity penalty, `SMALLEST` matches where an
    order has none. Texts too short for an n-gram of that order are left out, as hypotheses and as references.
    """
    long_enough = [text for text in texts if len(text) >= order]
    if len(long_enough) < 2:
        return None
    counts = [[Counter(ngrams(text, n)) for n in range(1, order + 1)] for text in long_enough]
    lengths = [len(text) for text in long_enough]
    scores = []
    for i, own in enumerate(counts):
        others = [j for j in range(len(counts)) if j != i]
        log_precision = 0.0
        for n in range(order):
            matches = sum(min(count, max(counts[j][n][gram] for j in others)) for gram, count in own[n].items())
            log_precision += math.log(max(matches, SMALLEST) / own[n].total()) / order
        closest = min((abs(lengths[j] - lengths[i]), lengths[j]) for j in others)[1]
        brevity = min(0.0, 1.0 - closest / lengths[i])
        scores.append(math.exp(log_precision + brevity))
    return math.fsum(scores) / len(scores)


def majority(answers: Sequence[int | None]) -> int | None:
    """The most frequent answer, the one given first among equals; None where nobody answered."""
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=lambda answer: votes[answer]) if votes else None
