"""The file of drawn samples: whatever a run leaves behind, the next one makes of it what one run would have made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.server.vote_cli.runs import drawn, lines, questions, samples, three
from tests.server.vote_cli.servers import FakeServer
from voting.samples_file import SamplesFileError


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    problems = questions(tmp_path, *({"prompt": f"Problem {name}?"} for name in "abc"))
    path = problems.with_suffix(".samples.jsonl")
    drawn(problems, FakeServer(), samples=2, top_logprobs=0)
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in {0, 1, 15, 16, *ends, *(end + step for end in ends for step in (-1, 1)), *range(0, len(whole), 97)}:
        path.write_bytes(whole[:cut])
        server = FakeServer()
        assert drawn(problems, server, samples=2, top_logprobs=0) == 0
        assert path.read_bytes() == whole
        assert len(server.bodies) == 3 - max(0, sum(end <= cut for end in ends) - 1)  # whole problems stay


def test_a_file_does_not_depend_on_who_is_first(tmp_path: Path) -> None:
    problems = three(tmp_path)
    late = FakeServer(delay_s=lambda body: 0.1 if "a?" in str(body["messages"]) else 0.0)
    drawn(problems, late, out=tmp_path / "late")
    drawn(problems, FakeServer(), out=tmp_path / "soon", concurrency=1)
    assert (tmp_path / "late").read_bytes() == (tmp_path / "soon").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late", "problems.jsonl", "soon"]


def test_problems_may_be_added(tmp_path: Path) -> None:
    drawn(questions(tmp_path, {"id": "b", "prompt": "q", "gold": 1}), FakeServer())
    more = questions(tmp_path, {"id": "a", "prompt": "p", "gold": 1}, {"id": "b", "prompt": "q", "gold": 1})
    drawn(more, server := FakeServer())
    assert len(server.bodies) == 1 and [line["id"] for line in lines(more)] == ["a", "b"]


def test_nothing_is_asked_when_everything_is_there(tmp_path: Path) -> None:
    problems = three(tmp_path)
    drawn(problems, FakeServer())
    assert drawn(problems, server := FakeServer()) == 0
    assert not server.bodies


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.5}, "other settings .temperature null, now 0.5."),
        ({"samples": 5}, "samples 4, now 5"),
        ({"model": "second"}, 'model "first", now "second"'),
        ({"seed": 1}, "seed 0, now 1"),
        ({"extract": "boxed", "top_p": 0.5}, 'top_p null, now 0.5; extract "auto", now "boxed"'),
        ({"methods": "verbalised"}, "instruction"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    problems = three(tmp_path)
    drawn(problems, FakeServer())
    before = problems.with_suffix(".samples.jsonl").read_bytes()
    with pytest.raises(SamplesFileError, match=words):
        drawn(problems, server := FakeServer(), **options)
    assert not server.bodies and problems.with_suffix(".samples.jsonl").read_bytes() == before


def test_where_and_how_fast_is_no_setting(tmp_path: Path) -> None:
    problems = three(tmp_path)
    drawn(problems, FakeServer())
    assert drawn(problems, FakeServer(), url="http://elsewhere/v1", concurrency=1, retries=0, methods="sc") == 0


@pytest.mark.parametrize("text", ["{}", '{"id": "a"}\n', "notes of mine", "[" * 100_000, '{"drawn_with": 3}\n{}\n'])
def test_files_of_something_else_are_left_alone(tmp_path: Path, text: str) -> None:
    problems = three(tmp_path)
    path = problems.with_suffix(".samples.jsonl")
    path.write_text(text)
    with pytest.raises(SamplesFileError, match="was not written by `drafthouse vote run`"):
        drawn(problems, FakeServer())
    assert path.read_text() == text


def test_folders_and_devices_are_no_files(tmp_path: Path) -> None:
    for out in (tmp_path, Path("/dev/null")):
        with pytest.raises(SamplesFileError, match="was not written by"):
            drawn(three(tmp_path), FakeServer(), out=out)


@pytest.mark.parametrize("change", [{"prompt": "Other?"}, {"gold": 21}, {"id": "z"}])
def test_other_problems_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    drawn(three(tmp_path), FakeServer())
    other = questions(tmp_path, {"id": "a", "prompt": "Problem a?", "gold": 20, **change})
    with pytest.raises(SamplesFileError, match="has samples of another problem"):
        drawn(other, FakeServer())


def test_the_problems_are_not_overwritten(tmp_path: Path) -> None:
    problems = three(tmp_path)
    with pytest.raises(ValueError, match="is the file of the problems"):
        drawn(problems, FakeServer(), out=problems)


def test_a_full_disk_loses_what_was_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = three(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", _full_disk(after=1))
        with pytest.raises(OSError, match="No space left"):
            drawn(problems, FakeServer(), concurrency=1)
    assert drawn(problems, FakeServer(), concurrency=1) == 0
    assert len(samples(problems)) == 12


def _full_disk(after: int) -> Any:
    calls = iter(range(after))

    def sync(file: int) -> None:
        if next(calls, None) is None:
            raise OSError(28, "No space left on device")

    return sync
