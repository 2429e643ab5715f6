"""`drafthouse rank`: what it counts, keeps and says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from server.cli import STARTUP_EXIT, app
from server.rank import sizes
from server.text.codec import TextCodec
from spec_decode.token_ranking import TokenRanking
from tests.server.live import TINY

CODEC = TextCodec.load(TINY)
TEXTS = {"a.txt": "One two three.\nOne two four.\n", "sub/b.py": "def one():\n    return 'Grüße'\n" * 20}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    for name, text in TEXTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "picture.png").write_bytes(b"\x89PNG\xff\x00")
    return root


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["rank", *map(str, arguments)])


def test_tokens_come_in_the_order_of_their_counts_behind_those_that_are_kept(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "ranking.npz"
    result = run(folder, "--output", output)
    assert result.exit_code == 0, result.output
    ranking = TokenRanking.load(output)
    ranking.check(CODEC.vocabulary, CODEC.fingerprint)
    ids = np.concatenate([CODEC.encode_plain(text) for text in TEXTS.values()])
    counts = np.bincount(ids, minlength=CODEC.vocabulary)
    assert np.array_equal(ranking.counts, counts[ranking.ids])
    kept, rest = ranking.ids[: ranking.kept].tolist(), ranking.counts[ranking.kept :]
    assert set(kept) == {*CODEC.special_ids, *(i for i, piece in enumerate(CODEC.pieces()) if len(piece) == 1)}
    assert CODEC.eos_token_id in kept and (np.diff(rest) <= 0).all()


def test_it_prints_what_subsets_cover(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "ranking.npz"
    result = run(folder, "--output", output)
    ranking = TokenRanking.load(output)
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["512", "1,024", "2,048", "4,096"]
    assert [row[2] for row in rows] == [f"{100 * ranking.coverage(size):.2f}" for size in (512, 1024, 2048, 4096)]
    said = " ".join(result.stderr.split())
    assert "2 files" in said and f"{ranking.kept} tokens" in said
    assert "picture.png" in said.replace(" ", "")  # a long path is wrapped


def test_tokens_of_chat_templates_are_kept_though_they_are_not_special(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    CODEC.hf.save_pretrained(model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    number = CODEC.vocabulary
    shape = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"].append({"id": number, "content": "<think>", "special": False, **shape})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    output = tmp_path / "ranking.npz"
    assert run(folder, "--output", output, "--model", model).exit_code == 0
    ranking = TokenRanking.load(output)
    assert len(ranking.ids) == number + 1 and number in ranking.ids[: ranking.kept]


@pytest.mark.parametrize(
    ("vocabulary", "kept", "shown"),
    [
        (4096, 262, [512, 1024, 2048, 4096]),
        (128_256, 600, [4096, 8192, 16384, 32768, 65536, 128_256]),
        (5, 5, [5]),
    ],
)
def test_sizes(vocabulary: int, kept: int, shown: list[int]) -> None:
    assert sizes(vocabulary, kept) == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--output", "x"], "there is no file"),
        (["texts", "--output", "no/folder/x"], "no folder"),
        (["texts", "--output", "x", "--model", "missing"], "there is no model"),
    ],
)
def test_says_what_is_wrong(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == STARTUP_EXIT and message in result.stderr
