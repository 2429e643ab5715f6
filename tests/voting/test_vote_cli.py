"""`drafthouse vote` through its command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from server.cli import STARTUP_EXIT, app

# answers and mean log-probabilities of four samples per problem
KNOWN = {
    "a": ("1", [("1", -0.1), ("2", -0.7), ("1.0", -0.9), ("1", -1.2)]),
    "b": ("7", [("8", -1.2), ("8", -1.6), ("7", -0.1), (None, -0.1)]),
    "c": ("3", [("4", -0.7), ("4", -0.9), ("4", -1.2), ("4", -1.6)]),
}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["vote", *map(str, arguments)], env={"COLUMNS": "140"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [
        {
            "id": name,
            "gold": gold,
            "samples": [
                {"text": f"{name}{i} so {answer}", "answer": answer, "mean_logprob": logprob}
                for i, (answer, logprob) in enumerate(samples)
            ],
        }
        for name, (gold, samples) in KNOWN.items()
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    columns = list(KNOWN.values())
    document = {
        "predict": [[answer or "" for answer, _ in samples] for _, samples in columns],
        "completion": [[f"{n} {i}" for i in range(4)] for n in range(3)],
        "mean_logprob": [[logprob for _, logprob in samples] for _, samples in columns],
        "answer": [gold for gold, _ in columns],
    }
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(document, indent=2))
    return path


def numbers(*arguments: object) -> dict[str, Any]:
    """What a command writes as JSON."""
    output = Path(str(arguments[1])).with_suffix(".out")
    result = invoke(*arguments, "--json", output)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(output.read_text())
    return document


def test_replay_by_hand(file: Path) -> None:
    found = numbers("replay", file, "--methods", "sc,pc,ppl", "--k", "2,4", "--repeats", 3, "--seed", 0)
    results = found["results"]
    assert list(results) == ["sc", "pc", "ppl"] and list(results["sc"]) == ["2", "4"]
    assert results["sc"]["4"]["accuracy"] == pytest.approx(1 / 3)
    assert results["sc"]["4"]["accuracy_std"] == 0
    assert results["sc"]["4"]["ece"] == pytest.approx((1 / 4 + 2 / 3 + 1) / 3)
    assert results["sc"]["4"]["mean_samples"] == 4
    assert results["pc"]["4"]["accuracy"] == results["ppl"]["4"]["accuracy"] == pytest.approx(2 / 3)
    assert found["coverage"]["1"]["pass_at_k"] == pytest.approx((3 / 4 + 1 / 4 + 0) / 3)
    assert found["coverage"]["4"]["pass_at_k"] == pytest.approx(2 / 3)
    assert found["settings"]["k"] == [2, 4] and found["settings"]["problems"] == 3


def test_both_layouts_say_the_same(file: Path, theirs: Path) -> None:
    options = ("--methods", "sc,pc,rpc,ppl", "--repeats", 4, "--k", "1,3,4")
    ours, other = (numbers("replay", path, *options) for path in (file, theirs))
    assert ours["results"] == other["results"] and ours["coverage"] == other["coverage"]


def test_the_same_command_gives_the_same_file_and_table(file: Path) -> None:
    arguments = ("replay", file, "--repeats", 3, "--json", file.with_suffix(".out"))
    one, first = invoke(*arguments), file.with_suffix(".out").read_bytes()
    other, second = invoke(*arguments), file.with_suffix(".out").read_bytes()
    assert (one.stdout, first) == (other.stdout, second)
    seeds = [numbers("replay", file, "--k", 2, "--repeats", 1, "--seed", seed)["results"] for seed in range(4)]
    assert any(one != seeds[0] for one in seeds)


def test_the_table_says_what_its_columns_mean(file: Path) -> None:
    shown = invoke("replay", file, "--methods", "sc", "--k", 4).stdout
    for words in ("33.33 ±0.00", "accuracy %: problems whose answer is right", "pass@k: chance", "samples.jsonl"):
        assert words in shown


def test_replay_as_published(theirs: Path) -> None:
    ours = numbers("replay", theirs, "--methods", "sc", "--k", 4, "--equiv", "published")
    published = numbers("replay", theirs, "--methods", "sc", "--k", 4, "--equiv", "published", "--rpc", "published")
    rows = [one["results"]["sc"]["4"] for one in (ours, published)]
    assert [row["abstain_rate"] for row in rows] == [pytest.approx(1 / 12), 0]


def test_parameters_of_methods(file: Path) -> None:
    weird = numbers("replay", file, "--methods", "ppl,pc", "--params", '{"ppl": {"normalise": "token"}}', "--k", 4)
    assert weird["results"].keys() == {"ppl", "pc"}


def test_answers_found_anew(file: Path) -> None:
    found = numbers(
        "replay", file, "--methods", "sc", "--k", 4, "--re-extract", "--extract", '{"regex": "so (\\\\S+)", "group": 1}'
    )
    assert found["results"]["sc"]["4"]["abstain_rate"] == 0  # "None" is an answer here
    assert found["results"]["sc"]["4"]["accuracy"] == pytest.approx(1 / 3)


def test_coverage(file: Path) -> None:
    found = numbers("coverage", file)
    assert found["counts"] == {"a": {"n": 4, "c": 3}, "b": {"n": 4, "c": 1}, "c": {"n": 4, "c": 0}}
    assert found["coverage"]["2"]["pass_at_k"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert list(found["coverage"]) == ["1", "2", "4"]
    law = found["power_law"]
    assert law["a"] < 0 and law["b"] < 0 and list(law["extrapolated"]) == ["8", "20", "40"]
    assert "extrapolated" in invoke("coverage", file).stdout
    assert list(numbers("coverage", file, "--k", "3")["coverage"]) == ["3"]


def test_calibrate(file: Path) -> None:
    found = numbers("calibrate", file, "--methods", "sc,pc")
    sc = found["results"]["sc"]
    assert sc["metrics"]["ece"]["value"] == pytest.approx((1 / 4 + 2 / 3 + 1) / 3)
    low, high = sc["metrics"]["brier"]["interval"]
    assert low < sc["metrics"]["brier"]["value"] < high
    assert [one["problems"] for one in sc["bins"]] == [1, 1, 1]
    assert (sc["k"], sc["without_confidence"]) == (4, 0)


def test_stop(file: Path) -> None:
    window = '{"rule": "esc", "window": 2}'
    found = numbers("stop", file, "--stop", "beta", "--stop", window, "--repeats", 5)
    assert list(found["results"]) == ["beta", window]
    esc, beta = found["results"][window], found["results"]["beta"]
    assert 2 <= esc["mean_samples"] < 4 and esc["saved"] == pytest.approx(1 - esc["mean_samples"] / 4)
    assert beta["mean_samples"] == 4 and beta["fired"] == pytest.approx(1 / 3)  # c is unanimous, at the last sample
    assert numbers("stop", file)["results"].keys() == {"beta", "esc", "mode_cert"}


@pytest.mark.slow
def test_pictures(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for command in ("replay", "coverage", "calibrate"):
        picture = tmp_path / f"{command}.png"
        assert invoke(command, file, "--plot", picture).exit_code == 0
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_math_verify_compares_what_keys_cannot(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["gold"] = r"\sqrt{1}"
    file.write_text("\n".join(map(json.dumps, lines)))
    exact, verified = (
        numbers("coverage", file, "--equiv", equiv)["counts"]["a"]["c"] for equiv in ("exact", "math_verify")
    )
    assert (exact, verified) == (0, 3)


def test_without_matplotlib_nothing_is_begun(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke("replay", file, "--plot", "x.png")
    assert result.exit_code == STARTUP_EXIT and "drafthouse[bench]" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("replay", "{file}", "--methods", "sc,best"), "unknown voting rule 'best'; known:"),
        (("replay", "{file}", "--k", "0"), "'k' must be positive integers"),
        (("replay", "{file}", "--k", "4,8"), "'k' must be at most the number of samples, 4, got 8"),
        (("replay", "{file}", "--k", "many"), "'k' must be positive integers"),
        (("replay", "{file}", "--equiv", "close"), "'equiv' must be one of"),
        (("replay", "{file}", "--equiv", '{"name": "exact", "percent": 3}'), "'equiv.percent' must be one of"),
        (("replay", "{file}", "--equiv", "{"), "'equiv' is no JSON"),
        (("replay", "{file}", "--params", '{"bon": {}}'), "'params.bon' must be"),
        (("replay", "{file}", "--params", '{"rpc": {"min_paths": 0}}'), "'params.rpc.min_paths' must be in [1, 512]"),
        (("replay", "{file}", "--params", "[]"), "'params' must be a JSON object"),
        (("replay", "{file}", "--methods", "bon"), "'params.bon.scorer' is required"),
        (("replay", "{file}", "--methods", "iew"), "problem 'a': 'iew' needs 'topk_entropy'"),
        (("replay", "{file}", "--extract", "boxed"), "--extract needs --re-extract"),
        (("replay", "{file}", "--re-extract", "--extract", "bxed"), "'extract' must be one of"),
        (("replay", "{file}.gone"), "No such file"),
        (("coverage", "{file}", "--k", "5"), "'k' must be in 1..4, got 5"),
        (("calibrate", "{file}", "--k", "5"), "at most the number of samples"),
        (("stop", "{file}", "--stop", "late"), "unknown stopping rule 'late'"),
        (("stop", "{file}", "--stop", '{"rule": "beta", "threshold": 1}'), "'stop.threshold' must be in"),
        (("stop", "{file}", "--method", "sc,pc"), "unknown voting rule 'sc,pc'"),
        (("stop", "{file}", "--samples", "5"), "at most the number of samples"),
    ],
)
def test_errors_are_one_line_and_status_2(file: Path, arguments: tuple[str, ...], words: str) -> None:
    result = invoke(*(one.replace("{file}", str(file)) for one in arguments))
    assert result.exit_code == STARTUP_EXIT == 2
    assert words in result.output and "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no problem"),
        ("{", "line 1: this is no JSON"),
        ('{"samples": [{"text": "t", "answer": "1"}]}', "problem '0' has no 'gold'"),
        ('{"gold": 1, "samples": [{"text": "t"}]}', "find them with --re-extract"),
        ('{"gold": 1, "samples": [{"text": "t", "answer": "1"}]}', "'pc' needs 'mean_logprob' of sample 0"),
        ('{"predict": [["1"]], "completion": [["t"]], "mean_logprob": [["x"]], "answer": ["1"]}', "must be a number"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    result = invoke("replay", path)
    assert result.exit_code == 2 and words in result.output
