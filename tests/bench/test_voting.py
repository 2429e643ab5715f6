"""`bench voting`: groups of samples, figures by hand, and runs of all parts so small that figures mean nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import estimates, figures, vote_cost, vote_draws, vote_report, vote_rules, vote_special, voting
from bench.sampler_runs import Sample as Sampled
from bench.sampler_runs import Sampling
from bench.vote_samples import (
    ARITHMETIC,
    ATTEMPTS,
    CHAINS,
    GROUP,
    INDEPENDENT,
    JUDGED,
    VERBALISED,
    Drawing,
    Size,
    as_sample,
    code_order,
    sub_group,
)
from models.embedded import TARGET
from samplers.code import CODE_BITS, fresh
from samplers.rng import Stream
from tests.voting.votes import sample
from voting.answers.extraction import read_extraction
from voting.contract import Sample
from voting.samples_file import Problem, SamplesFileError, read_problems

TINY = Size(
    problems=2,
    groups=1,
    repeats=2,
    special_problems=1,
    special_repeats=1,
    verbalised=2,
    chains=1,
    solution_tokens=40,
)

CODES = [[fresh("lattice", Stream(seed, one), GROUP).x for one in code_order(seed, GROUP)] for seed in range(4)]


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drawing]:
    threads = torch.get_num_threads()
    with Sampling(TARGET, 1) as sampling:
        yield Drawing(sampling, tmp_path_factory.mktemp("drawn"), TINY)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def measured(drawing: Drawing) -> Iterator[dict[str, Any]]:
    """What a tiny run of each part brings; its pieces are as many as it says."""

    def run(name: str) -> Any:
        totals: list[int] = []
        ticks: list[None] = []
        result = voting.SAMPLED[name].measuring(drawing, TINY).measure(totals.append, lambda: ticks.append(None))
        assert totals == [len(ticks)]
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "RESAMPLES", 20)
        patch.setattr("voting.intervals.RESAMPLES", 20)
        yield {name: run(name) for name in voting.SAMPLED}


# --- samples


@pytest.mark.parametrize("k", [1, 2, 8, 32, 64])
def test_evenly_spread_codes_of_a_group_are_a_group(k: int) -> None:
    """Codes (s + u) / k with one u: all are u / k plus a multiple of 1 / k, and every s occurs."""
    for codes in CODES:
        assert codes == sorted(codes)
        for start in range(GROUP // k):
            mine = [codes[place] for place in sub_group(k, start)]
            assert [code * k >> CODE_BITS for code in mine] == list(range(k))
            offsets = [code * k % (1 << CODE_BITS) for code in mine]
            assert max(offsets) - min(offsets) <= k  # codes are rounded down


def test_a_random_start_makes_the_offset_uniform() -> None:
    offsets = [codes[sub_group(4, start)[0]] * 4 / 2**CODE_BITS for codes in CODES for start in range(GROUP // 4)]
    counts = np.histogram(offsets, bins=16, range=(0, 1))[0]
    assert counts.tolist() == [len(CODES)] * 16  # stratified: each start covers its own sixteenth


def test_files_hold_groups_in_the_order_of_their_codes(drawing: Drawing, measured: dict[str, Any]) -> None:
    """Tokens take the intervals of a code in the order of their ids."""
    for problem in drawing.read(ARITHMETIC, lambda: None):
        assert len(problem.samples) == GROUP
        firsts = [one.token_ids[0] for one in problem.samples if one.token_ids]
        assert firsts == sorted(firsts) and len(firsts) == GROUP
    for problem in drawing.read(INDEPENDENT, lambda: None):
        assert all(len(one.entropies or ()) == len(one.confidences or ()) == one.n_tokens for one in problem.samples)
        assert all(min(one.confidences or ()) >= math.log(20) - 1e-4 for one in problem.samples)


def test_what_has_been_drawn_is_not_drawn_again(drawing: Drawing, measured: dict[str, Any]) -> None:
    kinds = (INDEPENDENT, ARITHMETIC, VERBALISED, CHAINS, JUDGED)
    assert drawing.missing(*kinds) == 0
    again = Drawing(drawing._sampling, drawing._folder, replace(TINY, repeats=5))  # which says nothing about samples
    assert again.missing(*kinds) == 0
    assert Drawing(drawing._sampling, drawing._folder, replace(TINY, problems=5)).missing(INDEPENDENT) == 3
    with pytest.raises(SamplesFileError, match="groups 1, now 3"):
        Drawing(drawing._sampling, drawing._folder, replace(TINY, groups=3)).missing(INDEPENDENT)


def test_the_same_samples_are_drawn_again(drawing: Drawing, measured: dict[str, Any], tmp_path: Path) -> None:
    anew = Drawing(drawing._sampling, tmp_path, replace(TINY, problems=1)).read(ARITHMETIC, lambda: None)[0]
    known = drawing.read(ARITHMETIC, lambda: None)[0]
    assert [one.token_ids for one in anew.samples] == [one.token_ids for one in known.samples]
    assert read_problems(tmp_path / "arithmetic.jsonl")[0].gold == known.gold


def test_a_sample_that_was_cut_is_truncated() -> None:
    extraction = read_extraction("hash")
    cut = as_sample(Sampled([5, 6], [-1.0, -2.0]), "3 + 4 = 7", extraction)
    assert (cut.finish_reason, cut.token_ids, cut.answer, cut.mean_logprob) == ("length", (5, 6), None, -1.5)
    ended = as_sample(Sampled([5], [-1.0, -2.0], ending=1), "#### 7", extraction)
    assert (ended.finish_reason, ended.token_ids, ended.answer, ended.n_tokens) == ("stop", (5, 1), "7", 2)
    assert ended.entropies is None


# --- figures


def test_the_least_samples_by_hand() -> None:
    credits = np.array([[0.0, 0.5], [0.5, 0.5], [0.9, 0.9], [0.8, 0.8], [0.8, 0.8], [0.8, 0.8], [0.8, 0.8]])
    assert vote_rules.needed(credits, np.array([0.8, 0.9])).value == 4
    never = vote_rules.needed(credits, np.array([0.95, 0.95]))
    assert vars(never) == {"value": 128, "low": 128, "high": 128}
    assert vote_rules.needed_text(never) == "> 64 (> 64..> 64)"


def test_the_deviation_of_groups_of_one_is_that_of_samples() -> None:
    values = np.random.default_rng(1).random((7, 5, 1))
    assert vote_draws.deviation(values) == pytest.approx(estimates.deviation(values[:, :, 0]))
    assert math.isnan(vote_draws.deviation(values[:, :1]))


def test_parts_of_a_group_are_not_compared_with_one_another() -> None:
    """By the definition: half the mean squared difference of values from different groups."""
    values = np.random.default_rng(2).random((3, 4, 6))
    gaps = [
        (values[item, g, i] - values[item, h, j]) ** 2 / 2
        for item in range(3)
        for g in range(4)
        for h in range(4)
        for i in range(6)
        for j in range(6)
        if g != h
    ]
    assert vote_draws.deviation(values) == pytest.approx(np.mean(gaps) ** 0.5)


def test_votes_of_parts_by_hand() -> None:
    answers = ["1" if place % 2 else "2" for place in range(GROUP)]
    problem = Problem("a", tuple(sample(place, answer) for place, answer in enumerate(answers)), "1")
    in_a_row, spread = vote_draws.votes([problem], vote_draws.block), vote_draws.votes([problem], sub_group)
    assert in_a_row[2].covered.tolist() == [[[1.0] * 32]]
    assert in_a_row[2].credit.shape == (1, 1, 32)
    assert spread[2].covered.tolist() == [[[0.0, 1.0] * 16]]  # places 0 and 32, 1 and 33, ...
    assert spread[32].credit.tolist() == [[[0.0, 1.0]]]


def test_deepconf_online_cuts_traces_and_stops_at_consensus() -> None:
    def trace(index: int, answer: str, *confidences: float) -> Sample:
        fields: dict[str, Any] = {"confidences": confidences, "n_tokens": len(confidences), "token_ids": None}
        return sample(index, answer, text=f"{index}", **fields)

    sure = [trace(i, "1" if i % 2 else "2", 5.0, 6.0, 5.5) for i in range(16)]
    unsure, late = trace(16, "2", 6.0, 6.0, 1.0, 6.0), trace(17, "1", 6.0, 6.0)
    method = replace(vote_special.ONLINE, params={"mode": "online", "window": 2})
    begun = vote_special.online([*sure, unsure, late], method.poll)
    assert [one.n_tokens for one in begun[16:]] == [3, 2]
    assert [one.abstain_reason for one in begun[16:]] == ["low_confidence", None]
    agreed = [trace(i, "1", 5.0, 6.0, 5.5) for i in range(40)]
    assert len(vote_special.online(agreed, method.poll)) == 17


# --- parts


def test_rules(measured: dict[str, Any]) -> None:
    rules = measured["rules"]
    assert list(rules.summaries) == [method.name for method in vote_rules.METHODS]
    at_one = {by_k[1]["accuracy"] for by_k in rules.summaries.values()}
    assert len(at_one) == 1  # whoever weighs it, one sample is what it is
    assert rules.gain["sc"].value == 0 and 1 <= rules.distinct_right <= rules.distinct <= TINY.pool
    summed = [rules.summaries[name][64] for name in ("pc, equal paths apart", "bon, likelihood, softmax")]
    assert summed[0]["accuracy"] == summed[1]["accuracy"]  # both add q
    likelihood = {name: rules.accuracy[name][64].value for name in ("ppl", "bon, likelihood")}
    assert likelihood["ppl"] == likelihood["bon, likelihood"]


def test_special(measured: dict[str, Any]) -> None:
    rows = measured["special"].rows
    assert [(row.method, row.k) for row in rows] == [
        *(("verbalised", k) for k in (1, 2)),
        *(("usc", k) for k in (2, 4, 8)),
        *(("iew, sequential", k) for k in (3, 6, ATTEMPTS)),
        ("deepconf online, window 8", 64),
    ]
    assert all(0 <= row.usable <= 1 for row in rows)
    assert rows[-1].saved is not None and 0 <= rows[-1].saved.value < 1


def test_stopping(measured: dict[str, Any]) -> None:
    stopping = measured["stopping"]
    assert len(stopping.rows) == 12 and len(stopping.claims) == 3
    assert all(0 <= row.saved.value < 1 for row in stopping.rows.values())
    strict, lax = (stopping.rows[f"beta, threshold {value}"].saved.value for value in (0.999, 0.9))
    assert strict <= lax


def test_draws(measured: dict[str, Any]) -> None:
    draws = measured["draws"]
    covered = [row.covered[0].value for row in draws.rows.values()]
    assert covered == sorted(covered)
    assert draws.rows[1].accuracy[0].value == pytest.approx(draws.coverage[0].value)
    assert draws.rows[64].covered[0].value == pytest.approx(draws.coverage[-1].value)  # of the whole pool


@pytest.mark.parametrize("part", list(voting.SAMPLED))
def test_reports_and_pictures(part: str, measured: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one, result = voting.SAMPLED[part], measured[part]
    assert "| claim | measured | verdict |" in one.markdown(result)
    json.dumps(one.json(result), allow_nan=False)
    one.draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_cost_by_hand(tmp_path: Path) -> None:
    size = replace(vote_cost.QUICK, rounds=3)
    cost = vote_cost.Cost(
        size, {vote_cost.PLAIN: [1.0, 2.0, 4.0], "sc": [1.1, 2.0, 4.8]}, {vote_cost.PLAIN: 9, "sc": 9}
    )
    assert cost.ratios("sc") == pytest.approx([1.1, 1.0, 1.2])
    claim = vote_cost.claim(cost, "sc")
    assert (claim.measured, claim.verdict) == ("1.10 (1.00-1.20)", "met")
    cost.claims = [claim]
    assert "| sc | 1000.0 (550.0-2400.0) | 1.10 (1.00-1.20) | 9 |" in vote_report.cost_markdown(cost)
    json.dumps(vote_report.cost_json(cost), allow_nan=False)
    pytest.importorskip("matplotlib")
    voting.COST.draw(cost, tmp_path / "picture.png")


def test_without_matplotlib_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(figures.NoFigures):
        voting.main("all", None, tmp_path / "new", quick=True, threads=1)
    assert not (tmp_path / "new").exists()
