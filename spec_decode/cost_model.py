"""What a step costs: seconds by the number of its rows, measured at start and corrected by every step since."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_RATE = 0.2  # of what a measurement finds wrong, this much is corrected
_JUDGING = 0.3  # of a step of one request: what judging drafts is thought to take before it was measured
_LEAST = 0.1  # of the fewest seconds at start: no call takes less


class Latency:
    """Seconds of a call by its rows, linear between those that were measured at start and beyond them."""

    def __init__(self, sweep: Mapping[int, float]) -> None:
        """sweep: rows -> seconds, at least two entries."""
        self._rows = sorted(sweep)
        self._seconds = [sweep[rows] for rows in self._rows]
        self._least = _LEAST * min(self._seconds)
        self._table: Floats | None = None  # by rows, as far as they were measured; None: the line has moved since

    def seconds(self, rows: npt.ArrayLike) -> Floats:
        """Of any shape; positive, whatever noise has done to the line. rows: integers, none below 0."""
        if self._table is None:
            self._table = self._line(np.arange(self._rows[-1] + 1))
        try:
            return np.asarray(self._table[rows])
        except IndexError:
            return self._line(rows)

    def _line(self, rows: npt.ArrayLike) -> Floats:
        asked = np.asarray(rows, np.float64)
        line = np.interp(asked, self._rows, self._seconds)
        first, last = self._rows[0], self._rows[-1]
        if asked.max(initial=first) > last:
            line = np.where(asked > last, self._seconds[-1] + (asked - last) * self._slope(-2), line)
        if asked.min(initial=first) < first:
            line = np.where(asked < first, self._seconds[0] + (asked - first) * self._slope(0), line)
        return np.maximum(line, self._least)

    def observe(self, rows: int, seconds: float, more: float = 0.0) -> float:
        """Move the line at `rows` towards a measurement, by its two ends in proportion to their share in it (the
        normalised least mean squares filter: Nagumo and Noda 1967). more: seconds of it that are no part of the line.
        Returns by how much that part is to be corrected."""
        left = min(max(bisect_right(self._rows, rows) - 1, 0), len(self._rows) - 2)
        share = (rows - self._rows[left]) / (self._rows[left + 1] - self._rows[left])
        shares = (1 - share, share)
        error = seconds - more - sum(own * self._seconds[left + end] for end, own in enumerate(shares))
        weight = sum(own * own for own in shares) + (more > 0.0)
        self._table = None
        for end, own in enumerate(shares):
            self._seconds[left + end] += _RATE * error * own / weight
        return _RATE * error / weight

    def _slope(self, left: int) -> float:
        """Seconds per row between a measured point and the next one."""
        return (self._seconds[left + 1] - self._seconds[left]) / (self._rows[left + 1] - self._rows[left])


@dataclass
class DraftCost:
    """Of one source: seconds by the number of requests it drafts for."""

    latency: Latency
    per_depth: bool  # of one level of the trees; False: of whole trees, of any depth
    fixed_s: float = 0.0  # and of any draft at all, beside its levels
    token_s: float = 0.0  # and of a token of the text that the source has not seen yet


class CostModel:
    """Costs of one engine."""

    def __init__(
        self, verify: Mapping[int, Latency], draft: Mapping[str, DraftCost], plain: Latency | None = None
    ) -> None:
        """verify: context -> seconds of a step by rows, be they of one request or, without `plain`, of as many as there
        are; draft: by name, of the sources that cost anything; plain: of a step without drafts by its rows, each of
        another request, to which drafts add what they add to a step of one."""
        self._verify = sorted(verify.items())
        contexts = [context for context, _ in self._verify]
        self._between = [math.sqrt(one * other) for one, other in itertools.pairwise(contexts)]
        self._draft = dict(draft)
        self._plain = plain
        self._judging_s = _JUDGING * float(plain.seconds(1)) if plain is not None else 0.0  # of drafts, beside the rows

    def charges(self, source: str) -> bool:
        """Whether its drafts cost anything."""
        return source in self._draft

    def verify(self, rows: npt.ArrayLike, context: float, plain: int = 1) -> Floats:
        """Seconds of a step with so many rows, of which `plain` are no drafts."""
        latency = self._at(context)
        if self._plain is None:
            return latency.seconds(rows)
        drafts = np.asarray(rows) - plain
        more = np.maximum(latency.seconds(drafts + 1) - latency.seconds(1), 0.0)
        return self._plain.seconds(plain) + more + self._judging_s * (drafts > 0)

    def first_look(self, source: str, tokens: int) -> float:
        """Seconds that a source needs for so many tokens of a text that it has not seen."""
        return self._draft[source].token_s * tokens if source in self._draft else 0.0

    def draft(self, source: str, requests: int, depths: npt.ArrayLike) -> Floats:
        """Seconds of drafting trees of these depths, 0: none."""
        levels = np.asarray(depths, np.float64)
        if source not in self._draft:
            return np.zeros_like(levels)
        cost, some = self._draft[source], np.minimum(levels, 1.0)
        return (levels if cost.per_depth else some) * cost.latency.seconds(requests) + some * cost.fixed_s

    def observe_verify(self, rows: int, context: float, seconds: float, plain: int = 1) -> None:
        latency = self._at(context)
        if self._plain is None:
            latency.observe(rows, seconds)
        elif rows == plain:
            self._plain.observe(rows, seconds)
        else:
            if seconds < float(self._plain.seconds(plain)):  # without drafts it would not have taken longer
                self._plain.observe(plain, seconds)
            alone = seconds - float(self._plain.seconds(plain)) + float(latency.seconds(1))
            self._judging_s += latency.observe(rows - plain + 1, alone, self._judging_s)
            self._judging_s = max(self._judging_s, _LEAST * float(self._plain.seconds(1)))

    def observe_draft(self, source: str, requests: int, depth: int, seconds: float) -> None:
        """seconds: of the drafts of a step; depth: of the deepest tree."""
        cost = self._draft[source]
        rest = seconds - cost.fixed_s
        cost.latency.observe(requests, rest / depth if cost.per_depth else rest)

    def _at(self, context: float) -> Latency:
        """Of the measured context that is the nearest by ratio."""
        return self._verify[bisect_left(self._between, context)][1]
