"""`bench spec`: rows against the models themselves, ways and claims by hand, and runs of all parts so small that
figures mean nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bench import estimates, figures, spec, spec_acceptance, spec_load, spec_overhead, spec_passes, spec_speed
from bench import spec_vocabulary as vocabularies
from bench.claims import Claim
from bench.estimates import Figure
from bench.sampler_runs import Failed, Sampling
from bench.spec_rig import Drafting, Pair, Rig
from bench.spec_texts import CODE, PROBLEMS, TASKS, Place, chain_at, places, prompts
from bench.spec_ways import AUTO, DRAWN, PLAIN, WAYS, distinct, named, require_drafts
from models.corpus import source_text
from models.embedded import DRAFT, TARGET, locate
from server.cli import SpecPart
from spec_decode.statistics import SpecStatistics
from spec_decode.tree_forms import chain, static

FEW = named(PLAIN, AUTO, "prompt lookup", "match, 4", "block, 4", "traversal, tree of 8")
TINY = {
    "speed": spec_speed.Size(counts=(1, 2), tokens=(12, 12), rounds=2, ways=FEW),
    "load": spec_load.Size(requests=4, at_once=2, tokens=8, rounds=2, ways=FEW),
    "acceptance": spec_acceptance.Size(prompts=2, places=2, tokens=8, turns=2, verified=2),
    "passes": spec_passes.Size(prompts=2, places=2, tokens=8, turns=2, verified=2),
    "vocabulary": vocabularies.Size(
        prompts=4, places=4, tokens=8, turns=1, rounds=1, calls=1, training_problems=50, large=(512, 16)
    ),
    "overhead": spec_overhead.Size(tokens=4, rounds=1),
}


@pytest.fixture(scope="module")
def sampling() -> Iterator[Sampling]:
    threads = torch.get_num_threads()
    with Sampling(TARGET, 1, draft=DRAFT) as one:
        yield one
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair(4)


@pytest.fixture(scope="module")
def measured(sampling: Sampling) -> Iterator[dict[str, Any]]:
    """What a tiny run of each part brings; its pieces are as many as it says."""

    def run(name: str) -> Any:
        totals: list[int] = []
        ticks: list[None] = []
        result = spec.PARTS[name].measuring(sampling, TINY[name]).measure(totals.append, lambda: ticks.append(None))
        assert totals == [len(ticks)]
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "RESAMPLES", 20)
        patch.setattr(vocabularies, "source_text", lambda held_out: [next(source_text(held_out))])
        yield {name: run(name) for name in spec.PARTS}


# --- places and rows


def test_places_are_in_what_the_target_writes(sampling: Sampling) -> None:
    asked = prompts(sampling, PROBLEMS, 3)
    found = places(sampling, asked, 0.0, 4, 12, lambda: None)
    assert len(found) == 12
    for place in found:
        assert place.tokens[: place.prompt_length] == asked[place.prompt]
    longest = max((place for place in found if place.prompt == 0), key=lambda place: len(place.tokens))
    model = AutoModelForCausalLM.from_pretrained(locate(TARGET))
    logits = model(torch.tensor([longest.tokens])).logits[0]
    assert logits[longest.prompt_length - 1 : -1].argmax(1).tolist() == list(longest.tokens[longest.prompt_length :])


@pytest.mark.parametrize(
    ("drafting", "temperature"),
    [
        (Drafting.of(chain(3)), 1.0),
        (Drafting.of(static((2, 2), 6), "hu"), 0.7),
        (Drafting.of(static((3, 1), 6), "swor"), 1.0),
    ],
)
def test_rows_are_what_the_models_say_behind_each_path(
    sampling: Sampling, pair: Pair, drafting: Drafting, temperature: float
) -> None:
    texts = [(5, 6, 7, 8, 9), (40, 41, 42)]
    rig = Rig(pair, [Place(i, text, 2) for i, text in enumerate(texts)], temperature, chain_at(sampling, temperature))
    drafts = rig.draft(drafting, 3)
    target, draft = (AutoModelForCausalLM.from_pretrained(locate(name)) for name in (TARGET, DRAFT))

    def law(model: Any, tokens: list[int]) -> torch.Tensor:
        return (model(torch.tensor([tokens])).logits[0, -1] / temperature).softmax(0)

    with torch.no_grad():
        for text, tree, root in zip(texts, drafts.trees, drafts.roots.tolist(), strict=True):
            behind = {-1: list(text)}
            for node, (token, parent) in enumerate(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)):
                behind[node] = [*behind[parent], token]
            for node, tokens in behind.items():
                torch.testing.assert_close(drafts.p[root + 1 + node], law(target, tokens), rtol=1e-3, atol=1e-5)
            if drafting.law != "hu":
                assert tree.q is not None
                q = law(draft, list(text))
                torch.testing.assert_close(tree.q[int(tree.q_rows[0])], q, rtol=1e-3, atol=1e-5)


def test_one_position_is_verified_as_a_whole_tree_is(sampling: Sampling, pair: Pair) -> None:
    asked = prompts(sampling, CODE, 4)
    rig = Rig(pair, [Place(i, one, len(one)) for i, one in enumerate(asked)], 1.0, chain_at(sampling, 1.0))
    drafting = Drafting.of((-1, -1, -1), "hu")
    whole, position = rig.draft(drafting, 0), rig.draft_position(drafting, 0)
    for turn in range(5):
        assert whole.verify("hu", turn).n_acc.tolist() == position.verify("hu", turn).n_acc.tolist()
    again = rig.draft(drafting, 1)
    assert any(one.tokens.tolist() != two.tokens.tolist() for one, two in zip(whole.trees, again.trees, strict=True))


# --- ways


def test_at_temperature_0_all_rules_are_one(sampling: Sampling) -> None:
    greedy = distinct(WAYS, sampling.runner, chain_at(sampling, 0.0))
    assert {request.verifier for request in greedy.values() if request is not None} == {"match"}
    assert "match, 4" in greedy and "block, 4" not in greedy and "token, 4" not in greedy
    drawn = distinct(WAYS, sampling.runner, chain_at(sampling, 1.0))
    verifiers = {name: request.verifier for name, request in drawn.items() if request is not None}
    assert set(verifiers.values()) == {"match", "token", "block", "traversal", "hu", "rrs", "kseq"}
    assert all(name.split(",")[0] == rule for name, rule in verifiers.items() if "," in name)
    assert drawn[PLAIN] is None and {way.kind for way in WAYS} >= {PLAIN, AUTO, DRAWN}


def test_ways_that_have_drafted_nothing_are_no_figures(sampling: Sampling) -> None:
    requests = distinct(WAYS, sampling.runner, chain_at(sampling, 1.0))
    nothing = SpecStatistics(steps=5, emitted=5)
    with pytest.raises(Failed, match="block, 4"):
        require_drafts("block, 4", requests["block, 4"], nothing)
    require_drafts("block, 4", requests["block, 4"], SpecStatistics(steps=5, drafted=1, emitted=5))
    for name in (PLAIN, AUTO, "prompt lookup"):
        require_drafts(name, requests[name], nothing)


def test_parts_of_the_command() -> None:
    assert {part.value for part in SpecPart} == {*spec.PARTS, "all"}


# --- figures by hand


def test_a_target_is_met_where_the_whole_interval_says_so() -> None:
    figures_ = {"met": Figure(1.0, 0.99, 1.1), "missed": Figure(0.9, 0.8, 0.95), "undecided": Figure(1.0, 0.95, 1.1)}
    for verdict, figure in figures_.items():
        assert Claim.of_target("", figure, 0.99, "").verdict == verdict


def test_speed_by_hand() -> None:
    case = (CODE, 1.0)
    timings = {
        PLAIN: spec_speed.Timing([2.0, 3.0, 4.0]),
        "prompt lookup": spec_speed.Timing([1.0, 1.0, 2.0]),
        "block, 4": spec_speed.Timing([2.0, 2.0, 2.0]),
    }
    speed = spec_speed.Speed(spec_speed.QUICK, {case: timings})
    assert speed.ratios(case, "block, 4") == [1.0, 1.5, 2.0]
    assert speed.best(case) == "prompt lookup" and speed.best(case, DRAWN) == "block, 4"
    assert [claim.verdict for claim in spec_speed.claims(speed)] == ["met", "met"]


def test_drafting_without_its_passes() -> None:
    """Of 10 seconds of passes 7 were the target's, so 3 of the 4 seconds of drafting are passes too."""
    seconds = {"draft": 4.0, "forward": 7.0, "verify": 1.0}
    assert spec_overhead.divided(seconds, 10.0) == {"draft": 1.0, "forward": 10.0, "verify": 1.0}
    assert spec_overhead.divided({"forward": 7.0}, 6.9) == {"draft": 0.0, "forward": 7.0}


def test_passes_are_clocked_and_put_back() -> None:
    from engine.runners.torch.forward import Forward

    before = Forward.__call__
    with pytest.raises(ValueError), spec_overhead.clocked():
        assert Forward.__call__ is not before
        raise ValueError
    assert Forward.__call__ is before


def test_claims_about_passes_by_hand() -> None:
    def row(drafts: str, rule: str, *tokens: float) -> spec_passes.Row:
        return spec_passes.Row(drafts, rule, 4, np.array(tokens))

    rows = [
        row(spec_passes.CHAIN, "token", 2.0, 3.0),
        row(spec_passes.CHAIN, "block", 2.5, 3.5),
        row("tree", "rrs", 2.0, 2.0),
        row("tree", "traversal", 2.5, 3.5),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spec_passes, "BUDGETS", (4,))
        block, tree = spec_passes.claims((CODE, 1.0), rows)
    assert (block.measured, block.verdict) == ("0.500 (0.500..0.500) tokens", "met")
    assert "tree; traversal" in tree.text and tree.verdict == "missed"  # it is no more than as good


# --- parts


def test_speed_and_load(measured: dict[str, Any]) -> None:
    for by_case in (measured["speed"].timings, measured["load"].rates):
        assert set(by_case) == {(task, temperature) for task in TASKS for temperature in (0.0, 1.0)}
    speed = measured["speed"]
    assert all(len(timing.seconds) == 2 for by_way in speed.timings.values() for timing in by_way.values())
    drawn: SpecStatistics = speed.timings[CODE, 1.0]["block, 4"].done
    assert drawn.drafted >= drawn.accepted > 0 and drawn.emitted == 2 * 12
    assert speed.timings[CODE, 1.0][PLAIN].done.steps == 0
    assert len(speed.claims) == 8 and len(measured["load"].claims) == 4


def test_acceptance(measured: dict[str, Any]) -> None:
    for rows in measured["acceptance"].rows.values():
        assert {row.rule for row in rows} == {"token", "block", "rrs", "kseq", "hu"}
        for row in rows:
            assert 0 <= row.measured.value <= 1
            if row.expected is not None:
                assert row.expected.value <= row.optimum.value + 1e-9
        assert [row.expected.value for row in rows if row.law == "hu"] == [
            row.optimum.value for row in rows if row.law == "hu"
        ]
    assert {claim.verdict for claim in measured["acceptance"].claims if "K-SEQ" in claim.text} == {"holds"}


def test_passes(measured: dict[str, Any]) -> None:
    for (_, temperature), rows in measured["passes"].rows.items():
        for row in rows:
            assert (row.by_prompt >= 1 - 1e-9).all() and (row.by_prompt <= 1 + row.budget + 1e-9).all()
        chains = [row.tokens.value for row in rows if row.drafts == spec_passes.CHAIN and row.rule == "token"]
        assert temperature or chains == sorted(chains)  # a longer one begins as a shorter one does


def test_vocabulary(measured: dict[str, Any]) -> None:
    found = measured["vocabulary"]
    assert [part.tokens for part in found.parts] == [512, 1024, 2048, 4096]
    assert found.quarter.tokens == 1024 and found.parts[-1].covered == 1
    assert all(found.kept(found.parts[-1], task).value == 1 for task in TASKS)
    assert all(set(part.head) == set(part.draft) == set(vocabularies.ROWS) for part in found.parts)


def test_overhead(measured: dict[str, Any]) -> None:
    for parts in measured["overhead"].parts.values():
        assert sum(shares[0] for shares in parts.values()) == pytest.approx(1)
        assert 0 < parts["forward"][0] < 1


@pytest.mark.parametrize("part", list(spec.PARTS))
def test_reports_and_pictures(part: str, measured: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one, result = spec.PARTS[part], measured[part]
    assert "| claim | measured | verdict |" in one.markdown(result)
    json.dumps(one.json(result), allow_nan=False)
    one.draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_without_matplotlib_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(figures.NoFigures):
        spec.main("all", tmp_path / "new", quick=True, threads=1)
    assert not (tmp_path / "new").exists()
