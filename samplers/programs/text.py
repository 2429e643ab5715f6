"""An output, finished or not, as those see it who judge outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from samplers.programs.branch import End, Limits


@dataclass(frozen=True)
class Text:
    """Output tokens and what they stand for."""

    ids: Sequence[int]  # the ending id left out
    end: End | None
    limits: Limits

    @staticmethod
    def of(ids: Sequence[int], end: End | None, limits: Limits) -> Text:
        """`ids` with the ending id, if there is one."""
        return Text(ids if end is None or end.token is None else ids[:-1], end, limits)

    @cached_property
    def data(self) -> bytes:
        """Special tokens are left out, a stop string that has ended the text is not; the last character may be torn."""
        return b"".join(map(self.limits.piece, self.ids))

    def __str__(self) -> str:
        return self.data.decode(errors="replace")
