"""Which samples do not vote, whatever the rule (voting.md section 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from voting.contract import Sample

SHORTEST = 8  # tokens of an n-gram whose repetition means that a sample has lost its way
TIMES = 4


def judged(sample: Sample, *, keep_truncated: bool = False, guard_repetition: bool = True) -> Sample:
    """The sample, marked if it abstains: 'no_tokens', 'bad_logprob', 'truncated', 'repetition' or 'no_answer', the
    first of these that is true. One that is marked already stays as it is.

    keep_truncated: `on_truncated` is "keep", so a sample that was cut off votes with the answer that it has.
    """
    return (
        sample
        if sample.abstain_reason
        else replace(sample, abstain_reason=_reason(sample, keep_truncated, guard_repetition))
    )


def _reason(sample: Sample, keep_truncated: bool, guard_repetition: bool) -> str | None:
    if sample.token_ids == ():
        return "no_tokens"
    if sample.mean_logprob is not None and not math.isfinite(sample.mean_logprob):
        return "bad_logprob"
    if sample.finish_reason == "length" and not keep_truncated:
        return "truncated"
    if guard_repetition and sample.token_ids is not None:
        ended = sample.finish_reason == "stop"  # the last token may be an EOS
        if ends_in_a_loop(sample.token_ids) or (ended and ends_in_a_loop(sample.token_ids[:-1])):
            return "repetition"
    return "no_answer" if sample.answer is None else None


def ends_in_a_loop(ids: Sequence[int]) -> bool:
    """Whether some n-gram of at least `SHORTEST` tokens stands `TIMES` times in a row at the end."""
    tail = ids[-SHORTEST:]
    return any(
        ids[-SHORTEST - n : -n] == tail and ids[-TIMES * n : -n] == ids[-(TIMES - 1) * n :]
        for n in range(SHORTEST, len(ids) // TIMES + 1)
    )
