"""Settings of speculation: how they are said, what they need of each other, and rankings of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.embedded import locate
from server.config import ConfigError, ServeConfig, load_config
from server.drafting import check_drafting, load_drafting
from server.launch import build_state
from server.runners import engine_settings
from server.text.codec import TextCodec
from spec_decode.token_ranking import TokenRanking
from tests.server.live import TINY

DRAFT = locate("drafthouse-tiny-draft")
PARTS: dict[str, Any] = {"draft_model": "d", "draft_ranking": "r.npz", "draft_vocab": {"1k": 1024}}


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec.load(TINY)


def ranking_file(folder: Path, codec: TextCodec, fingerprint: str | None = None) -> str:
    counts = np.arange(codec.vocabulary)[::-1].copy()
    ranking = TokenRanking.of(counts, range(100), codec.fingerprint if fingerprint is None else fingerprint)
    ranking.save(folder / "ranking.npz")
    return str(folder / "ranking.npz")


@pytest.mark.parametrize(
    ("flags", "environment", "file"),
    [
        ({"draft_vocab": ["1k=1024", "2k=2048"]}, {}, ""),
        ({}, {"DRAFTHOUSE_DRAFT_VOCAB": "1k=1024, 2k=2048"}, ""),
        ({}, {}, "draft_vocab: {1k: 1024, 2k: 2048}"),
        ({"draft_vocab": ["1k=1024", "2k=2048"]}, {"DRAFTHOUSE_DRAFT_VOCAB": "8=8"}, "draft_vocab: {9: 9}"),
    ],
)
def test_parts_of_the_vocabulary_are_said_in_three_places(
    tmp_path: Path, flags: dict[str, Any], environment: dict[str, str], file: str
) -> None:
    (tmp_path / "config.yaml").write_text(file)
    config = load_config(flags, environment, tmp_path / "config.yaml")
    assert config.draft_vocab == {"1k": 1024, "2k": 2048} == engine_settings(config).draft_vocab


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"draft_vocab": ["1024"]}, "'1024' must be NAME=SIZE"),
        ({"draft_vocab": ["a=1", "a=2"]}, "'a' is given twice"),
        ({"draft_vocab": ["a=0"]}, "draft_vocab.a"),
        ({"draft_vocab": ["a=many"]}, "draft_vocab.a"),
        ({"draft_vocab": ["full=9"]}, "whole vocabulary"),
        ({"draft_vocab": {"full": 9}}, "whole vocabulary"),
        ({"draft_vocab": ["a b=9"]}, "draft_vocab"),
        ({"draft_vocab": 3}, "draft_vocab"),
        ({"spec_max_len": -1}, "spec_max_len"),
        ({"spec_max_len": 33}, "spec_max_len"),
    ],
)
def test_wrong_settings(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(flags, {})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"draft_model": "drafthouse-tiny"}, "is the served model itself"),
        ({"draft_model": "x", "served_name": "x"}, "is the served model itself"),
        (PARTS | {"draft_model": None}, "'draft_vocab' has no effect without 'draft_model'"),
        (PARTS | {"draft_ranking": None}, "'draft_vocab' has no effect without 'draft_ranking'"),
        (PARTS | {"draft_vocab": {}}, "'draft_ranking' has no effect without 'draft_vocab'"),
        ({"spec_past_outputs": True}, "'spec_past_outputs' has no effect without 'api_key'"),
    ],
)
def test_settings_that_mean_nothing_alone_end_the_start(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_state(ServeConfig(**settings))


def test_settings_that_go_together() -> None:
    check_drafting(ServeConfig())
    check_drafting(ServeConfig(**PARTS, spec_past_outputs=True, api_key=["k"]))


def test_a_ranking_is_loaded_beside_the_model(tmp_path: Path, codec: TextCodec) -> None:
    file = ranking_file(tmp_path, codec)
    config = ServeConfig(draft_model="d", draft_ranking=file, draft_vocab={"1k": 1024})
    found = load_drafting(config, DRAFT, "m", codec)
    assert found.draft == DRAFT and found.ranking is not None
    assert len(found.ranking.subset(1024)) == 1024
    assert load_drafting(ServeConfig(draft_model="d"), DRAFT, "m", codec).ranking is None


@pytest.mark.parametrize("size", [99, 4097])
def test_a_part_must_be_one(tmp_path: Path, codec: TextCodec, size: int) -> None:
    config = ServeConfig(draft_model="d", draft_ranking=ranking_file(tmp_path, codec), draft_vocab={"odd": size})
    with pytest.raises(ConfigError, match=r"'draft_vocab\.odd'"):
        load_drafting(config, DRAFT, "m", codec)


def test_rankings_that_do_not_fit(tmp_path: Path, codec: TextCodec) -> None:
    files = {
        "another tokenizer": ranking_file(tmp_path, codec, "other"),
        "cannot read": str(tmp_path / "missing.npz"),
        "no ranking": str(tmp_path / "text.npz"),
    }
    Path(files["no ranking"]).write_text("text")
    for message, file in files.items():
        config = ServeConfig(draft_model="d", draft_ranking=file, draft_vocab={"1k": 1024})
        with pytest.raises(ConfigError, match=f"'draft_ranking'.*{message}"):
            load_drafting(config, DRAFT, "m", codec)


def test_another_tokenizer_does_not_draft(codec: TextCodec, tmp_path: Path) -> None:
    text = (TINY / "tokenizer.json").read_text()
    for file in TINY.iterdir():
        if "token" in file.name and file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    pair = next(iter(codec.fast.get_added_tokens_decoder().values())).content
    (tmp_path / "tokenizer.json").write_text(text.replace(pair, pair[:-1] + "X"))
    (tmp_path / "config.json").write_bytes((TINY / "config.json").read_bytes())
    with pytest.raises(ConfigError, match="differ in vocabulary"):
        load_drafting(ServeConfig(draft_model="d"), str(tmp_path), "m", codec)
