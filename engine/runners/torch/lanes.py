"""Finds decode rows whose keys start at regularly spaced slots, so that one strided view holds them all.

Any two stretches of one pool are regularly spaced; the page allocator starts sequences at dyadic places, so
usually many more are. Plain Python, no torch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

_SHORT = 7  # stretches of up to 2**_SHORT - 1 keys are padded to one another without a second thought


class Lane(NamedTuple):
    """The keys of one row: `length` slots from `start`."""

    row: int
    start: int
    length: int


def regular_lanes(lanes: tuple[Lane, ...], num_slots: int) -> list[tuple[Lane, ...]]:
    """Partition into batches with constant distance between starts and lengths within a factor of two.

    A batch's padded stretch never reaches past `num_slots`.
    """
    ordered = sorted(lanes, key=lambda lane: lane.start)
    classes = tuple(max(_SHORT, lane.length.bit_length()) for lane in ordered)
    batches = []
    for members in _progressions(tuple(lane.start for lane in ordered), classes):
        batch = [ordered[i] for i in members]
        longest = max(lane.length for lane in batch)
        while len(batch) > 1 and batch[-1].start + longest > num_slots:
            batches.append((batch.pop(),))
        batches.append(tuple(batch))
    return batches


@lru_cache(maxsize=256)
def _progressions(starts: tuple[int, ...], classes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Greedy partition of ascending `starts` into arithmetic progressions within a class, longest first tried."""
    batches = []
    for wanted in sorted(set(classes)):
        where = {starts[i]: i for i in range(len(starts)) if classes[i] == wanted}
        left = sorted(where)
        while left:
            best = [left[0]]
            for second in left[1:]:
                stride = second - left[0]
                if stride * (len(best) - 1) > left[-1] - left[0]:
                    break  # even an unbroken progression of this stride would not be longer
                chain = [left[0]]
                while chain[-1] + stride in where:
                    chain.append(chain[-1] + stride)
                if len(chain) > len(best):
                    best = chain
            batches.append(tuple(where[start] for start in best))
            for start in best:
                del where[start]
            left = sorted(where)
    return tuple(batches)
