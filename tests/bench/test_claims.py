"""Verdicts on claims, and which of them end a run."""

from __future__ import annotations

import pytest

from bench.claims import Claim, Violated, require, table
from bench.estimates import Figure


def test_what_has_to_hold_of_every_one() -> None:
    holds = Claim.of_all("all different", 5, [])
    broken = Claim.of_all("bound", 5, ["third: 9 > 8"])
    assert (holds.measured, holds.verdict) == ("5 of 5", "holds")
    assert broken.measured == "4 of 5, not third: 9 > 8"
    require([holds])
    with pytest.raises(Violated, match="bound"):
        require([holds, broken])
    assert table([broken])[-1].endswith("| VIOLATED |")


def test_a_target_is_for_the_median() -> None:
    assert Claim.of_ratio("faster", [1.0, 2.0, 9.0], 2.0).verdict == "met"
    missed = Claim.of_ratio("faster", [1.9, 1.9, 9.0], 2.0)
    assert (missed.text, missed.measured, missed.verdict) == ("faster: at least 2", "1.90 (1.90-9.00)", "missed")
    require([missed])  # says so, and that is all


def test_a_share_is_judged_by_its_interval() -> None:
    figures = (Figure(0.1, 0.05, 0.2), Figure(0.1, -0.05, 0.2), Figure(-0.1, -0.2, -0.05))
    claims = [Claim.of_figure("saves", figure, "points") for figure in figures]
    assert [claim.verdict for claim in claims] == ["reproduced", "undecided", "contradicted"]
    assert claims[0].measured == "10.0 (5.0..20.0) points"
    require(claims)
