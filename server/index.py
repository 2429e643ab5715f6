"""Counts the n-grams of text files with a model's tokenizer, for `drafthouse index`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from samplers.programs.ngram_counter import NgramCounter
from server.launch import find_model
from server.text.codec import TextCodec
from server.text_files import TextFiles, check_folder, replace_file


def write_index(paths: Sequence[Path], model: str, output: Path, orders: int) -> None:
    """Write NgramTables of all files at and below the paths. Raises ConfigError, OSError or ValueError."""
    notes = Console(stderr=True)
    texts = TextFiles(paths, notes)
    check_folder(output)
    codec = TextCodec.load(find_model(model))
    counter = NgramCounter(codec.vocabulary, orders)
    tokens = 0
    for text in texts:
        for block in text:
            ids = codec.encode_plain(block)
            counter.add(ids)
            tokens += len(ids)
        if text.whole and codec.eos_token_id is not None:  # drafts could not end where no text ever does
            counter.add([codec.eos_token_id])
        counter.end_text()
    with notes.status("sorting"):
        tables = counter.tables(codec.fingerprint)
        replace_file(output, tables.save)
    sizes = ", ".join(f"{len(level):,} of {order}" for order, level in zip(tables.orders, tables.levels, strict=True))
    notes.print(f"{tokens:,} tokens of {texts.whole:,} files; different sequences: {sizes} tokens", highlight=False)
    notes.print(f"{output}: {output.stat().st_size / 1e6:.1f} MB", highlight=False)
    texts.note_refused()
