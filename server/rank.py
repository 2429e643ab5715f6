"""Ranks a tokenizer's tokens by how often texts need them, for `drafthouse rank`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from server.launch import find_model
from server.text.codec import TextCodec
from server.text_files import TextFiles, check_folder, replace_file
from spec_decode.token_ranking import TokenRanking, count_tokens, needed_tokens

_SIZES = 5  # halvings of the vocabulary that are shown


def write_ranking(paths: Sequence[Path], model: str, output: Path) -> None:
    """Write a TokenRanking of all files at and below the paths. Raises ConfigError, OSError or ValueError."""
    notes = Console(stderr=True)
    texts = TextFiles(paths, notes)
    check_folder(output)
    codec = TextCodec.load(find_model(model))
    counts = count_tokens((block for text in texts for block in text), codec.encode_plain, codec.vocabulary)
    added = frozenset(codec.fast.get_added_tokens_decoder())  # what chat templates write, and what ends a text
    ranking = TokenRanking.of(counts, needed_tokens(codec.pieces(), added), codec.fingerprint)
    replace_file(output, ranking.save)
    found = np.count_nonzero(counts)
    notes.print(f"{counts.sum():,} tokens of {texts.whole:,} files, {found:,} different ones", highlight=False)
    notes.print(f"in every subset: {ranking.kept:,} tokens, those of templates and of single bytes", highlight=False)
    Console().print(coverage(ranking), highlight=False)
    texts.note_refused()


def coverage(ranking: TokenRanking) -> Table:
    """What subsets of several sizes hold."""
    table = Table("tokens", "of the vocabulary, %", "of the texts, %", box=box.SIMPLE)
    for column in table.columns:
        column.justify = "right"
    whole = len(ranking.ids)
    for size in sizes(whole, ranking.kept):
        table.add_row(f"{size:,}", f"{100 * size / whole:.1f}", f"{100 * ranking.coverage(size):.2f}")
    return table


def sizes(vocabulary: int, kept: int) -> list[int]:
    """Powers of two below the vocabulary that have room for the tokens that are kept, and the vocabulary; rising."""
    powers = [2**power for power in range(vocabulary.bit_length()) if kept <= 2**power < vocabulary]
    return [*powers[-_SIZES:], vocabulary]
