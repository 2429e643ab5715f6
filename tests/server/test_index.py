"""`drafthouse index`: what it counts, and how its files get into a server."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from samplers.programs.ngram_counter import NgramCounter
from samplers.programs.ngrams import NgramTables
from server import text_files
from server.cli import STARTUP_EXIT, app
from server.config import ConfigError, load_config
from server.launch import load_ngrams, serve_model
from server.text.codec import TextCodec
from tests.server.live import TINY

CODEC = TextCodec.load(TINY)
TEXTS = {"a.txt": "One two three.\nOne two four.\n", "sub/b.py": "def one():\n    return 'Grüße'\n" * 20, "empty": ""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Texts, and what lies between them in real folders."""
    root = tmp_path / "texts"
    for name, text in TEXTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "picture.png").write_bytes(b"\x89PNG\xff\x00")
    (root / ".hidden").write_text("not counted")
    return root


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["index", *map(str, arguments)])


def by_hand(texts: list[str], orders: int = 6) -> NgramTables:
    counter = NgramCounter(CODEC.vocabulary, orders)
    for text in texts:
        counter.add([*CODEC.encode_plain(text), CODEC.hf.eos_token_id])
        counter.end_text()
    return counter.tables(CODEC.fingerprint)


def same(one: NgramTables, other: NgramTables) -> bool:
    assert one.fingerprint == other.fingerprint and one.vocabulary == other.vocabulary and one.orders == other.orders
    return all(
        np.array_equal(a.keys, b.keys) and np.array_equal(a.ends, b.ends)
        for a, b in zip(one.levels, other.levels, strict=True)
    )


def test_counts_every_text_of_a_folder(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "counts.npz"
    result = run(folder, "--output", output)
    assert result.exit_code == 0, result.output
    assert same(NgramTables.load(output), by_hand(list(TEXTS.values())))
    said = "".join(result.stderr.split())  # lines are wrapped, wherever the path is long
    assert all(part in said for part in ("100%", "3files", "picture.png"))
    assert sorted(tmp_path.iterdir()) == [output, folder]


def test_files_and_orders_can_be_chosen(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "counts"
    result = run(folder / "a.txt", folder / ".hidden", "--output", output, "--orders", "3")
    assert result.exit_code == 0, result.output
    assert same(NgramTables.load(output), by_hand([TEXTS["a.txt"], "not counted"], 3))


def test_long_texts_are_read_in_blocks_of_whole_lines(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "BLOCK", 40)
    file = folder / "sub/b.py"
    parts = list(text_files.blocks(file))
    assert "".join(parts) == TEXTS["sub/b.py"] and len(parts) > 5 and all(part.endswith("\n") for part in parts)
    assert run(file, "--output", tmp_path / "counts").exit_code == 0
    counts = NgramTables.load(tmp_path / "counts").levels[0].counts
    tokens = sum(len(CODEC.encode_plain(part)) for part in parts)
    assert counts.sum() == tokens  # with the ending token one more, and one pair less


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--output", "x"], "there is no file"),
        (["empty-folder", "--output", "x"], "no files"),
        (["texts", "--output", "no/folder/x"], "no folder"),
        (["texts", "--output", "texts"], "cannot write"),
        (["texts", "--output", "x", "--model", "missing"], "there is no model"),
    ],
)
def test_says_what_is_wrong(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty-folder").mkdir()
    result = run(*arguments)
    assert result.exit_code == STARTUP_EXIT and message in result.stderr
    assert not [name for name in os.listdir(tmp_path) if name.endswith((".part", "x"))]


def test_a_server_takes_the_tables_of_its_tokenizer_only(tmp_path: Path) -> None:
    file = tmp_path / "counts.npz"
    by_hand(["some text"]).save(file)
    served = serve_model(TINY, load_config({"ngrams": str(file)}, {}))
    assert served.runner.facts.ngrams is not None
    NgramCounter(CODEC.vocabulary).tables("another").save(file)
    with pytest.raises(ConfigError, match=r"setting 'ngrams': .*another tokenizer"):
        load_ngrams(str(file), CODEC)
    with pytest.raises(ConfigError, match=r"setting 'ngrams': cannot read .*No such file"):
        load_ngrams(str(tmp_path / "none"), CODEC)
    file.write_text("text")
    with pytest.raises(ConfigError, match=r"setting 'ngrams': .*holds no n-grams"):
        load_ngrams(str(file), CODEC)
