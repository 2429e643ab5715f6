"""Statistics of a choice."""

from __future__ import annotations

import pytest

from spec_decode.acceptance import Verified
from spec_decode.statistics import SpecStatistics
from spec_decode.tree_forms import chain, static


def test_statistics_of_four_steps() -> None:
    statistics = SpecStatistics()
    assert statistics.report("summary") == {"steps": 0, "drafted": 0, "accepted": 0, "mean_emitted": 0.0}
    statistics.add(Verified(chain(3), [0, 1]), 3, "suffix")
    statistics.add(Verified(static((2, 1), 4), [1], repaired=1), 2, "suffix")
    statistics.add(Verified((), []), 1, "suffix")
    statistics.add(Verified(chain(1), [0]), 1, "suffix")  # the output ended with the draft
    assert statistics.copy() == statistics and statistics.repaired == 1
    assert statistics.report("none") == {}
    summary = {"steps": 4, "drafted": 8, "accepted": 4, "mean_emitted": pytest.approx(7 / 4)}
    assert statistics.report("summary") == summary
    assert statistics.report("detailed") == summary | {
        "acceptance_by_offset": [1.0, 0.5, 0.0],
        "draft_lengths": {"0": 1, "1": 1, "2": 1, "3": 1},
    }
