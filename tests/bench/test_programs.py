"""`bench programs`: prompts, bookkeeping and claims, and runs of all parts so small that figures mean nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import estimates, figures, program_eager, program_priority, program_superposed, programs
from bench.claims import Violated
from bench.held_out import NextLine, next_lines
from bench.program_costs import Cost, cost, new_tokens
from bench.sampler_runs import Answer, Job, Sample, Sampling
from models.corpus import source_text
from models.embedded import TARGET, locate
from samplers.chain import resolve
from samplers.programs.ngram_counter import NgramCounter
from server.text.codec import TextCodec

TINY = {
    "priority": program_priority.Size(lines=2, problems=2, prompt_tokens=16, line_tokens=4, solution_tokens=6),
    "superposed": program_superposed.Size(lines=3, prompt_tokens=16, timed_lines=1, rounds=2),
    "eager": program_eager.Size(problems=2, tuning_problems=2, thetas=(0.1, 9.0), solution_tokens=40),
}


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec.load(locate(TARGET))


@pytest.fixture(scope="module")
def sampling(tmp_path_factory: pytest.TempPathFactory, codec: TextCodec) -> Iterator[Sampling]:
    """A model with n-grams of one file."""
    counter = NgramCounter(codec.vocabulary)
    counter.add(codec.encode_plain(next(source_text(held_out=False))))
    file = tmp_path_factory.mktemp("ngrams") / "counts"
    counter.tables(codec.fingerprint).save(file)
    threads = torch.get_num_threads()
    with Sampling(TARGET, 1, file) as one:
        yield one
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def measured(sampling: Sampling) -> Iterator[dict[str, Any]]:
    """What a tiny run of each part brings; its pieces are as many as it says."""

    def run(name: str) -> Any:
        totals: list[int] = []
        ticks: list[None] = []
        measuring = programs.PARTS[name].measuring(sampling, TINY[name])
        result = measuring.measure(totals.append, lambda: ticks.append(None))
        assert totals == [len(ticks)]
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "RESAMPLES", 20)
        yield {name: run(name) for name in programs.PARTS}


# --- prompts


def test_next_lines_continue_held_out_files_as_these_are_tokenized(codec: TextCodec) -> None:
    files = list(source_text(held_out=True))
    lines = next_lines(codec.fast, 20, 64)
    assert len(set(lines)) == 20
    for one in lines:
        before = codec.fast.decode(one.prompt, skip_special_tokens=False)
        file = next(text for text in files if before + one.text in text)
        ids = codec.encode_plain(file)
        whole = [*one.prompt, *one.ids]
        assert any(ids[at : at + len(whole)] == whole for at in range(len(ids)))
        assert len(one.line.strip()) >= 4
        assert before.endswith(("\n", " ", "\t")) and not before.rpartition("\n")[2].strip()
        own = codec.fast.decode(one.ids)
        assert own.startswith(one.line + "\n") and "\n" not in codec.fast.decode(one.ids[:-1])


def test_a_line_ends_with_its_break() -> None:
    assert NextLine((1,), " return x\n\n\ndef", (2,)).line == " return x"


# --- bookkeeping


def sample(tokens: int, **details: Any) -> Sample:
    return Sample(list(range(tokens)), [0.0] * tokens, details)


def test_samples_share_passes_and_never_compute_their_last_tokens() -> None:
    assert cost(Answer([sample(3), sample(5)])) == Cost(passes=5, tokens=6)
    assert cost(Answer([sample(3)], {"forward_passes": 9, "tokens_computed": 4})) == Cost(9, 4)


def test_new_tokens_are_those_behind_the_branch() -> None:
    assert new_tokens(Answer([sample(5, branch_depth=0), sample(7, branch_depth=4)])) == 8


def test_a_line_ends_a_choice_of_samples_and_of_programs_alike(sampling: Sampling, codec: TextCodec) -> None:
    vocab, facts = sampling.runner.vocab_size, sampling.runner.facts
    fields = {"greedy": {"temperature": 0.0}, "search": {"sampler": {"name": "priority"}}}
    prompts = [line.prompt for line in next_lines(codec.fast, 6, 48)]
    jobs = [
        Job((name, i), resolve(one, vocab, facts), prompt, 1, 1, 40, line=True)
        for name, one in fields.items()
        for i, prompt in enumerate(prompts)
    ]
    answers = sampling.answers(jobs, lambda: None)
    ended = 0
    for i in range(len(prompts)):
        (greedy,), (search,) = answers["greedy", i].samples, answers["search", i].samples
        assert greedy.tokens == search.tokens  # a search's first choice is the greedy one
        text = codec.decode(greedy.tokens)
        assert "\n" not in codec.decode(greedy.tokens[:-1])
        ended += "\n" in text
    assert ended


def test_jobs_in_turn_take_longer_than_one(sampling: Sampling) -> None:
    job = Job("one", resolve({}, sampling.runner.vocab_size), (5, 6, 7), 1, 1, 12, whole=True)
    sampling.timed([job])
    assert sampling.timed([job] * 6).seconds > sampling.timed([job]).seconds > 0


# --- parts


def test_priority(measured: dict[str, Any]) -> None:
    priority = measured["priority"]
    assert set(priority.rows) == {program_priority.LINES, program_priority.PROBLEMS}
    for row in (row for by_method in priority.rows.values() for row in by_method.values()):
        values = [one.value for one in row.curve]
        assert len(values) == program_priority.N and values == sorted(values)
        assert 0 < row.unique.value <= 1 and row.texts.value <= row.unique.value
        assert row.tokens.value > 0
    for by_method in priority.rows.values():
        assert {by_method[method.name].unique.value for method in program_priority.PRIORITY} == {1.0}
    distinct = priority.rows[program_priority.LINES][program_priority.DISTINCT[0].name]
    assert distinct.texts.value == 1.0
    assert [claim.verdict for claim in priority.claims[:2]] == ["holds", "holds"]
    assert priority.claims[0].measured == "12 of 12"  # 4 searches of 2 lines, 2 of 2 problems


def test_a_request_beyond_the_bound_or_with_equal_choices_is_a_violation(sampling: Sampling) -> None:
    measuring = program_priority.Measuring(sampling, TINY["priority"])
    report = {"forward_passes": 9, "tokens_computed": 8, "duplicates": 0}
    fine = Answer([sample(5, branch_depth=0), sample(7, branch_depth=4)], report)
    beyond = replace(fine, report={**report, "tokens_computed": 9})
    repeated = replace(fine, samples=[sample(5, branch_depth=0), sample(5, branch_depth=0)])
    dropped = replace(beyond, report={**beyond.report, "duplicates": 1})  # the dropped one's tokens are not told

    def verdicts(answer: Answer) -> list[str]:
        return [claim.verdict for claim in measuring._claims({"one": answer})[:2]]

    assert verdicts(fine) == verdicts(dropped) == ["holds", "holds"]
    assert verdicts(beyond) == ["holds", "VIOLATED"]
    assert verdicts(repeated) == ["VIOLATED", "holds"]


def test_superposed(measured: dict[str, Any]) -> None:
    superposed = measured["superposed"]
    ways = {program_superposed.WITH, program_superposed.WITHOUT, program_superposed.IN_TURN}
    for n in program_superposed.COUNTS:
        assert superposed.seconds[n].keys() == ways | {program_superposed.BATCHED}
        assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in superposed.seconds[n].values())
    assert superposed.covered[program_superposed.HEAD] == 3
    few, many = (superposed.coverage[program_superposed.HEAD][n] for n in program_superposed.COUNTS)
    assert few[program_superposed.SAMPLES].value <= many[program_superposed.SAMPLES].value
    made_up = replace(superposed, seconds={3: {"fast": [1.0, 2.0], "slow": [3.0, 4.0]}})
    assert made_up.ratios(3, "fast", "slow") == [3.0, 2.0]


def test_what_a_draft_has_to_begin_with() -> None:
    line = NextLine((1,), " x = 1\n    return x\n", (2,))
    wanted = program_superposed.Measuring._wanted
    assert wanted(program_superposed.HEAD, line) == " x = 1\n   "
    assert wanted(program_superposed.LINE, line) == " x = 1\n"


def test_eager(measured: dict[str, Any]) -> None:
    eager = measured["eager"]
    heights = [one.value for one in eager.curve]
    assert len(heights) == program_eager.N and heights == sorted(heights)
    assert eager.curve_tokens[-1] == pytest.approx(program_eager.N * eager.curve_tokens[0])
    for mode in program_eager.MODES:
        many, one = (eager.rows[program_eager.Setting(mode, theta)] for theta in (0.1, 9.0))
        assert one.sequences.value == 1.0 <= many.sequences.value <= program_eager.N
        assert one.tokens.value <= many.tokens.value
        assert eager.tuned[mode] in TINY["eager"].thetas


@pytest.mark.parametrize("part", list(programs.PARTS))
def test_reports_and_pictures(part: str, measured: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one, result = programs.PARTS[part], measured[part]
    assert "| claim | measured | verdict |" in one.markdown(result)
    json.dumps(one.json(result), allow_nan=False)
    one.draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_a_violation_is_raised_when_everything_has_been_written(
    sampling: Sampling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "RESAMPLES", 20)
    monkeypatch.setattr(program_priority, "new_tokens", lambda answer: 0)
    monkeypatch.setattr(programs, "PARTS", {"priority": replace(programs.PARTS["priority"], quick=TINY["priority"])})
    monkeypatch.setattr(programs, "Sampling", lambda *_: sampling)
    monkeypatch.setattr(Sampling, "__exit__", lambda *_: None)  # others go on with it
    pytest.importorskip("matplotlib")
    with pytest.raises(Violated, match="tokens computed"):
        programs.main("all", tmp_path / "new", quick=True, threads=1, ngrams=False)
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {"programs-priority.md", "programs-priority.json", "programs-priority.png"}
    assert "VIOLATED" in (tmp_path / "new" / "programs-priority.md").read_text()


def test_without_matplotlib_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(figures.NoFigures):
        programs.main("all", tmp_path / "new", quick=True, threads=1, ngrams=True)
    assert not (tmp_path / "new").exists()
