"""What a served model is drafted for with: a second model of the same tokenizer, and parts of its vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server.config import ConfigError, ServeConfig
from server.text.codec import TextCodec
from spec_decode.token_ranking import RankingError, TokenRanking


@dataclass(frozen=True)
class Drafting:
    """None: there is none."""

    draft: str | None = None  # folder or hub id of the model
    ranking: TokenRanking | None = None  # of its tokens, for the parts of the setting `draft_vocab`


def load_drafting(config: ServeConfig, folder: str, model: str, codec: TextCodec) -> Drafting:
    """folder: of `draft_model`; codec: of `model`, the one that is drafted for. Raises ConfigError."""
    if TextCodec.load(folder).fast.get_vocab() != codec.fast.get_vocab():
        raise ConfigError(f"setting 'draft_model': {config.draft_model} and {model} differ in vocabulary")
    return Drafting(folder, None if config.draft_ranking is None else _ranking(config, config.draft_ranking, codec))


def _ranking(config: ServeConfig, file: str, codec: TextCodec) -> TokenRanking:
    """A ranking of the tokenizer's ids that has all configured parts."""
    try:
        ranking = TokenRanking.load(Path(file))
        ranking.check(codec.vocabulary, codec.fingerprint)
    except RankingError as error:
        raise ConfigError(f"setting 'draft_ranking': {error}") from None
    except OSError as error:
        raise ConfigError(f"setting 'draft_ranking': cannot read {file}: {error.strerror}") from None
    for name, size in config.draft_vocab.items():
        try:
            ranking.subset(size)
        except RankingError as error:
            raise ConfigError(f"setting 'draft_vocab.{name}': {error}") from None
    return ranking


def check_drafting(config: ServeConfig) -> None:
    """Settings of speculation that mean nothing without each other. Raises ConfigError."""
    if config.draft_model is not None and config.draft_model in (config.model, config.served_name):
        raise ConfigError(f"setting 'draft_model': {config.draft_model} is the served model itself")
    for name, needed in (
        ("draft_vocab", "draft_ranking"),
        ("draft_ranking", "draft_vocab"),
        ("draft_vocab", "draft_model"),
        ("spec_past_outputs", "api_key"),  # outputs belong to keys
    ):
        if getattr(config, name) and not getattr(config, needed):
            raise ConfigError(f"setting '{name}' has no effect without '{needed}'")
