"""`bench samplers`: its methods, its rows, and a run of both parts so small that figures mean nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from bench import figures, sampler_cost, sampler_figures, sampler_quality, sampler_report, samplers
from bench.held_out import source_prompts
from bench.sampler_methods import METHODS, PAIRS, PLAIN, TOP_P_GRID, TYPICAL_GRID, Method, available
from bench.sampler_runs import Failed, Job, Sampling
from models.embedded import TARGET, locate
from samplers.model_facts import NO_FACTS
from server.text.codec import TextCodec

TINY = sampler_quality.Size(
    problems=2, prompts=2, n=3, draws=2, pair_draws=2, prompt_tokens=8, source_tokens=12, solution_tokens=24
)
TINY_COST = sampler_cost.Size(rows=6, vocab=600, rounds=2, steps=1)


def test_methods_have_names_of_their_own_and_pairs_exist() -> None:
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names)
    assert {name for pair in PAIRS for name in pair} <= set(names)
    assert PLAIN in {method.name for method in TOP_P_GRID} & {method.name for method in TYPICAL_GRID}


def test_pairs_differ_in_the_draw_only() -> None:
    fields = {method.name: dict(method.fields) for method in METHODS}
    for independent, arithmetic in PAIRS:
        assert fields[arithmetic] == {**fields[independent], "draw": "arithmetic"}


def test_unknown_methods_are_skipped_with_the_reason() -> None:
    methods = (Method("plain"), Method("new", {"no_such_sampler": 1}), Method("wrong", {"top_p": 7}))
    found = available(methods, 100, NO_FACTS)
    assert list(found.chains) == ["plain"]
    assert found.skipped["new"] == "unknown sampling field 'no_such_sampler'"
    assert "top_p" in found.skipped["wrong"]


def test_source_prompts_start_functions_and_differ() -> None:
    tokenizer = TextCodec.load(locate(TARGET)).fast
    prompts = source_prompts(tokenizer, 12, 20)
    assert len(set(prompts)) == 12
    assert {len(prompt) for prompt in prompts} == {20}
    assert all(tokenizer.decode(prompt).lstrip().startswith(("def ", "class ")) for prompt in prompts)


def test_rows_are_peaked_and_flat() -> None:
    def entropies(rows: torch.Tensor) -> torch.Tensor:
        logp = rows.log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)

    peaked = entropies(sampler_cost.peaked(16, 5000, 0))
    assert peaked.min() < 1.0 < 3.0 < peaked.max()
    assert entropies(sampler_cost.flat(16, 5000, 0)).min() > math.log(5000) - 1


def test_histories_are_stretches_of_source_with_room_to_go_on() -> None:
    codec = TextCodec.load(locate(TARGET))
    made = sampler_cost.histories(codec, 3, codec.fast.get_vocab_size())
    assert {len(one) for one in made} == {512 + 128 + sampler_cost.CONTINUED}
    assert len({tuple(one) for one in made}) == 3
    assert all("self" in codec.fast.decode(one) or "def" in codec.fast.decode(one) for one in made)
    assert max(max(one) for one in sampler_cost.histories(codec, 3, 100)) < 100
    assert sampler_cost.Size().steps < sampler_cost.CONTINUED


def test_cost_of_a_tiny_stack() -> None:
    costing = sampler_cost.Costing(TINY_COST, [*sampler_cost.KINDS, sampler_cost.Kind("none", "draw", {"no_such": 1})])
    ticks: list[None] = []
    cost = costing.measure(lambda: ticks.append(None))
    assert len(ticks) == costing.measurements
    assert "none" in cost.skipped
    assert {"temperature", "top-p", "gumbel", "penalties"} <= cost.timings.keys()
    for timings in (*cost.timings.values(), cost.mixed):
        assert all(len(one.ms) == len(one.ratios) == TINY_COST.rounds for one in timings.values())
        assert all(ratio > 0 for one in timings.values() for ratio in one.ratios)
    text = "\n".join(sampler_report.cost_markdown(cost))
    assert "| every row another | mixed |" in text
    json.dumps(sampler_report.cost_json(cost), allow_nan=False)


def test_targets_are_judged_by_the_median_of_every_kind_of_rows() -> None:
    timing = sampler_cost.Timing
    cost = sampler_cost.Cost(
        TINY_COST,
        {"fast": "sort-free", "slow": "sort-free"},
        {
            "fast": {"peaked": timing([1.0] * 3, [1.0, 1.2, 9.0]), "flat": timing([1.0], [1.3])},
            "slow": {"peaked": timing([1.0], [1.0]), "flat": timing([1.0], [1.4])},
        },
        *({"peaked": timing([1.0], [1.0]), "flat": timing([1.0], [1.0])} for _ in range(2)),
    )
    lines = {line.split("|")[1].strip(): line for line in sampler_report.cost_markdown(cost) if line.startswith("|")}
    assert lines["fast"].endswith("| yes |")
    assert lines["slow"].endswith("| no |")


@pytest.mark.slow
def test_quality_of_a_tiny_run(tmp_path: Path) -> None:
    names = (PLAIN, "T = 0.7", "top-p 0.9", "typical 0.9", "arithmetic")
    methods = [*(method for method in METHODS if method.name in names), Method("new", {"no_such_sampler": 1})]
    with Sampling(TARGET, 1) as sampling:
        measuring = sampler_quality.Measuring(sampling, TINY, methods)
        totals: list[int] = []
        ticks: list[None] = []
        quality = measuring.measure(totals.append, lambda: ticks.append(None))
        fewer = sampler_quality.Measuring(sampling, TINY, methods[:1])
        asked = {(job.key, job.prompt, job.seed) for job in measuring.jobs()}
        assert {(job.key, job.prompt, job.seed) for job in fewer.jobs()} <= asked  # whatever it is compared with
    assert totals == [len(ticks)]
    assert set(quality.rows) | set(quality.skipped) == {method.name for method in methods}
    assert quality.skipped["new"].startswith("unknown sampling field")
    for figures_of in quality.rows.values():
        assert 0 < figures_of["nll"].value < 15
        for share in ("distinct_1", "self_bleu", "repeated_4", "accuracy", "majority", "any_right"):
            assert 0 <= figures_of[share].value <= 1
        assert figures_of["accuracy"].value <= figures_of["any_right"].value
    text = "\n".join(sampler_report.quality_markdown(quality))
    assert "- new: unknown sampling field" in text
    json.dumps(sampler_report.quality_json(quality), allow_nan=False)
    pytest.importorskip("matplotlib")
    sampler_figures.draw_quality(quality, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_run_writes_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(samplers, "QUICK_COST", TINY_COST)
    threads = torch.get_num_threads()
    samplers.main("cost", None, None, tmp_path / "new", quick=True, threads=1)
    torch.set_num_threads(threads)
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {"samplers-cost.md", "samplers-cost.json", "samplers-cost.png"}
    assert "--quick" in json.loads((tmp_path / "new" / "samplers-cost.json").read_text())["command"]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(figures.NoFigures, match=r"drafthouse\[bench\]"):
        samplers.main("all", None, None, tmp_path / "new", quick=True, threads=1)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_job_that_fails_is_reported_and_others_go_on() -> None:
    with Sampling(TARGET, 1) as sampling:
        vocab, facts = sampling.runner.vocab_size, sampling.runner.facts
        chains = available(
            (Method("fine"), Method("empty", {"allowed_token_ids": sorted(sampling.eos)})), vocab, facts
        ).chains
        jobs = [Job(name, chain, (5, 6, 7), 1, 2, 6, True) for name, chain in chains.items()]
        results = sampling.run(jobs, lambda: None)
    assert isinstance(results["empty"], Failed)  # the ending token is masked and everything else is not allowed
    fine = results["fine"]
    assert not isinstance(fine, Failed)
    assert [len(sample.tokens) for sample in fine.samples] == [6, 6]


def test_rows_are_as_before_when_a_step_is_over() -> None:
    costing = sampler_cost.Costing(TINY_COST, sampler_cost.KINDS[:2])
    before = {name: logits.clone() for name, logits in costing._logits.items()}
    costing.measure(lambda: None)
    assert all(torch.equal(costing._logits[name], logits) for name, logits in before.items())
