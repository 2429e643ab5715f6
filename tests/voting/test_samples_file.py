"""Files of samples: both layouts, and what is wrong with others."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from samplers.contract import SamplerError
from tests.voting.votes import samples_of, vote
from voting.contract import Sample
from voting.records import read_sample, write_sample
from voting.samples_file import SamplesFileError, read_problems

TABLES: dict[str, Any] = {
    "predict": [["1", "", "2"], ["x", "x"]],
    "completion": [["is 1", "is", "is 2"], ["so x", "x"]],
    "mean_logprob": [[-0.1, -0.2, -0.3], [0, -1.5]],
    "answer": ["1", 7],
}
LINE: dict[str, Any] = {"id": "a", "gold": 3, "samples": [{"text": "t", "answer": "3"}]}


def written(folder: Path, *documents: Any) -> Path:
    path = folder / "samples.json"
    lines = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in documents]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_the_layout_of_rpc(tmp_path: Path) -> None:
    one, other = read_problems(written(tmp_path, json.dumps(TABLES, indent=1)))
    assert (one.id, one.gold, other.id, other.gold) == ("0", "1", "1", "7")
    assert [sample.answer for sample in one.samples] == ["1", None, "2"]
    assert [sample.text for sample in other.samples] == ["so x", "x"]
    assert [sample.mean_logprob for sample in other.samples] == [0, -1.5]
    assert [sample.identity for sample in other.samples] == ["so x", "x"]  # no token ids: by text


def test_our_layout(tmp_path: Path) -> None:
    second = {"prompt": "p\u2028q", "samples": [{"index": 4, "text": "u"}, {"index": 2, "text": "v", "answer": None}]}
    one, other = read_problems(written(tmp_path, LINE, "", second, ""))
    assert (one.id, one.gold, one.samples) == ("a", "3", (Sample(0, "t", "3"),))
    assert (other.id, other.gold, other.prompt) == ("1", None, "p\u2028q")
    assert [sample.index for sample in other.samples] == [2, 4]


def test_one_line_is_enough(tmp_path: Path) -> None:
    assert [one.id for one in read_problems(written(tmp_path, LINE))] == ["a"]


def test_what_a_vote_records_can_be_read(tmp_path: Path) -> None:
    samples = samples_of(("1", 0.5), (None, 0.4), ("2", 0.3))
    records = vote("rpc", samples).records()
    again = read_problems(written(tmp_path, {"samples": json.loads(json.dumps(records))}))[0].samples
    assert vote("rpc", again).report() == vote("rpc", samples).report()
    assert [(s.text, s.token_ids, s.mean_logprob, s.entropies, s.scores) for s in again] == [
        (s.text, s.token_ids, s.mean_logprob, s.entropies, s.scores) for s in samples
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"predict": None}, "'predict' must be a list"),
        ({"answer": None}, "'answer' must be a list"),
        ({"completion": [["a"]]}, "'completion' has 1 problems, 'answer' 2"),
        ({"mean_logprob": [[-0.1, -0.2], [0, -1]]}, r"'mean_logprob\[0\]' has 2 samples, 'predict\[0\]' 3"),
        ({"predict": [["1", "", 2], ["x", "x"]]}, r"'predict\[0\]\[2\]' must be a string"),
        ({"mean_logprob": [[-0.1, -0.2, None], [0, -1]]}, r"'mean_logprob\[0\]\[2\]' must be a number"),
        ({"mean_logprob": [[-0.1, 0.2, -1], [0, -1]]}, r"'mean_logprob\[0\]\[1\]' .* must not be positive"),
        ({"predict": [[], ["x"]]}, r"'predict\[0\]' must be a list with at least one"),
        ({"answer": [["1"], "7"]}, r"'answer\[0\]' must be a string or a number"),
    ],
)
def test_malformed_tables(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(SamplesFileError, match=words):
        read_problems(written(tmp_path, TABLES | change))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], "line 1: this is no JSON"),
        ([LINE, "nonsense"], "line 2: this is no JSON"),
        (["[" * 100_000], "line 1: this is no JSON"),
        (["[1]"], "line 1: a line must be a JSON object"),
        ([], "holds no problem"),
        ([{}], "line 1: 'samples' must be a list"),
        ([LINE | {"samples": []}], "'samples' must be a list with at least one"),
        ([LINE | {"golden": 3}], "'golden' is not a field of a problem"),
        ([LINE | {"gold": [3]}], "'gold' must be a string or a number"),
        ([LINE | {"prompt": 3}], "'prompt' must be a string"),
        ([LINE, LINE], "two problems have the id 'a'"),
        ([LINE | {"samples": [{"text": "t", "index": 1}, {"text": "u"}]}], "two 'samples' have the same index"),
        ([LINE, {"samples": [{"text": "t"}, 3]}], r"line 2: 'samples\[1\]' must be an object"),
    ],
)
def test_malformed_lines(tmp_path: Path, lines: list[Any], words: str) -> None:
    with pytest.raises(SamplesFileError, match=words):
        read_problems(written(tmp_path, *lines))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"{\xff}")
    with pytest.raises(SamplesFileError, match="is not UTF-8"):
        read_problems(path)
    with pytest.raises(OSError, match="missing"):
        read_problems(tmp_path / "missing")


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({}, "text"),
        ({"text": 3}, "text"),
        ({"text": "t", "answer": 3}, "answer"),
        ({"text": "t", "n_token": 3}, "n_token"),
        ({"text": "t", "n_tokens": -1}, "n_tokens"),
        ({"text": "t", "n_tokens": 2.0}, "n_tokens"),
        ({"text": "t", "n_tokens": 2, "token_ids": [1]}, "n_tokens"),
        ({"text": "t", "token_ids": [1, "2"]}, "token_ids[1]"),
        ({"text": "t", "token_ids": "12"}, "token_ids"),
        ({"text": "t", "mean_logprob": 0.1}, "mean_logprob"),
        ({"text": "t", "mean_logprob": True}, "mean_logprob"),
        ({"text": "t", "mean_logprob": -(10**400)}, "mean_logprob"),
        ({"text": "t", "sample_weight": -1}, "sample_weight"),
        ({"text": "t", "sample_weight": math.inf}, "sample_weight"),
        ({"text": "t", "sample_weight": math.nan}, "sample_weight"),
        ({"text": "t", "confs": [1, "2"]}, "confs[1]"),
        ({"text": "t", "scores": [1]}, "scores"),
        ({"text": "t", "scores": {"a": "b"}}, "scores.a"),
    ],
)
def test_records_that_are_no_sample(record: dict[str, Any], field: str) -> None:
    with pytest.raises(SamplerError) as caught:
        read_sample(record, 0, "samples_data[3]")
    assert caught.value.param == f"samples_data[3].{field}"


def test_what_a_record_holds() -> None:
    record = {"text": "t", "token_ids": [5, 6], "mean_logprob": -math.inf, "confs": [None, 1], "scores": {"a": None}}
    sample = read_sample(record | {"q": 3, "seed": "x", "pruned": None}, 7, "s")
    assert (sample.index, sample.n_tokens, sample.token_ids, sample.mean_logprob) == (7, 2, (5, 6), -math.inf)
    assert sample.confidences is not None
    assert math.isnan(sample.confidences[0]) and math.isnan(sample.scores["a"])


def test_how_it_was_drawn_is_read_past(tmp_path: Path) -> None:
    header = {"drawn_with": {"model": "m"}}
    drawn = {"id": "b", "samples": [{"text": "t", "seed": 7, "counted": "listed"}]}
    assert [one.id for one in read_problems(written(tmp_path, header, LINE, header, drawn))] == ["a", "b"]
    with pytest.raises(SamplesFileError, match="holds no problem"):
        read_problems(written(tmp_path, header))


def test_a_sample_written_is_the_sample_read() -> None:
    full = Sample(
        3, "t", "1", token_ids=(4, 2), n_tokens=2, mean_logprob=-0.5, finish_reason="length", abstain_reason="failed",
        weight=0.25, entropies=(0.1, 0.2), confidences=(3.0, 4.0), scores={"judge": 1.0},
    )  # fmt: skip
    for sample in (full, Sample(0, ""), Sample(1, "", token_ids=())):
        assert read_sample(json.loads(json.dumps(write_sample(sample), allow_nan=False)), 9, "s") == sample
