"""What prompts of one batch leave unused of their samples goes to those that need more (EAGER, arXiv 2510.11170).

From the formulas. Knows counts only; whoever draws the samples grants nothing beyond this, and lowers the threshold of
entropy where labels say who needs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

CAP = 2  # times its first limit, what a prompt has in all at most


class Reallocation(NamedTuple):
    """granted + unspent = saved, so that all sequences together stay within prompts times limit."""

    granted: tuple[int, ...]  # per prompt, further sequences it may use
    saved: int
    unspent: int


def reallocate(used: Sequence[int], limit: int, solved: Sequence[bool] | None = None) -> Reallocation:
    """Equal shares, rounded down, for prompts that have reached the limit, or with labels (`solved`) for those without
    a right sequence so far. One prompt alone has nobody to share with.

    used: sequences per prompt, each 1..limit. Raises ValueError for others, or for labels of another number of prompts.
    """
    if not all(1 <= one <= limit for one in used):
        raise ValueError(f"every prompt uses 1..{limit} sequences, got {list(used)}")
    if solved is not None and len(solved) != len(used):
        raise ValueError(f"{len(used)} prompts have {len(solved)} labels")
    needy = [one == limit for one in used] if solved is None else [not one for one in solved]
    saved = sum(limit - one for one in used)
    share = saved // sum(needy) if any(needy) and len(used) > 1 else 0
    granted = tuple(min(share, CAP * limit - one) if needs else 0 for one, needs in zip(used, needy, strict=True))
    return Reallocation(granted, saved, saved - sum(granted))
