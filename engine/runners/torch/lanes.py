"""Finds short spans whose keys start at regularly spaced slots, so that one strided view holds them all.

Any two stretches of one pool are regularly spaced; the page allocator gives sequences the cells of a grid, row by row,
so usually many more are. Plain Python, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_SHORT = 127  # keys; stretches of up to so many are padded to one another without a second thought


class Lane(NamedTuple):
    """What rows row .. row + height - 1 see together: `length` slots from `start`, which hold `token` and the next."""

    row: int
    start: int
    length: int
    height: int = 1
    token: int = 0


def regular_lanes(lanes: tuple[Lane, ...], num_slots: int) -> list[tuple[Lane, ...]]:
    """Partition into batches of one height with constant distance between starts and lengths within a factor of two.

    A batch's padded stretch never reaches past `num_slots`.
    """
    ordered = sorted(lanes, key=lambda lane: lane.start)
    classes = _classes(ordered)
    batches = []
    for members in _progressions(tuple(lane.start for lane in ordered), classes):
        batch = [ordered[i] for i in members]
        longest = max(lane.length for lane in batch)
        while len(batch) > 1 and batch[-1].start + longest > num_slots:
            batches.append((batch.pop(),))
        batches.append(tuple(batch))
    return batches


def _classes(lanes: Sequence[Lane]) -> tuple[int, ...]:
    """For each lane a number that equal heights and similar lengths share."""
    classes = [0] * len(lanes)
    number = height = longest = 0
    for i in sorted(range(len(lanes)), key=lambda i: (lanes[i].height, lanes[i].length), reverse=True):
        lane = lanes[i]
        if lane.height != height or 2 * max(lane.length, _SHORT) < longest:
            number, height, longest = number + 1, lane.height, lane.length
        classes[i] = number
    return tuple(classes)


@lru_cache(maxsize=256)
def _progressions(starts: tuple[int, ...], classes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Greedy partition of ascending `starts` into arithmetic progressions within a class, longest first tried."""
    batches = []
    for wanted in sorted(set(classes)):
        where: dict[int, list[int]] = {}
        for i, start in enumerate(starts):
            if classes[i] == wanted:
                where.setdefault(start, []).append(i)
        for same in [members for members in where.values() if len(members) > 1]:
            batches.append(tuple(same))  # several rows over one stretch: a progression with distance zero
            del where[starts[same[0]]]
        left = sorted(where)
        while left:
            best = _longest_from_first(left)
            batches.append(tuple(where[start][0] for start in best))
            left = sorted(set(left) - set(best))
    return tuple(batches)


def _longest_from_first(ascending: list[int]) -> list[int]:
    """The longest arithmetic progression within `ascending` that begins at its first number."""
    first, last, members = ascending[0], ascending[-1], set(ascending)
    best = [first]
    for second in ascending[1:]:
        stride = second - first
        if stride * len(best) > last - first:
            break  # even an unbroken progression of this stride would not be longer
        chain = list(range(first, last + 1, stride))
        length = next((i for i, start in enumerate(chain) if start not in members), len(chain))
        if length > len(best):
            best = chain[:length]
    return best
