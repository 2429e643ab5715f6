"""Counts the n-grams of text files with a model's tokenizer, for `drafthouse index`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from samplers.programs.ngram_counter import NgramCounter
from samplers.programs.ngrams import NgramTables
from server.config import ConfigError
from server.launch import find_model
from server.text.codec import TextCodec

BLOCK = 2**20  # characters that are tokenized at once; the rest of the line is not left behind


@dataclass
class Work:
    """What has been counted, and what could not be."""

    counter: NgramCounter
    tokens: int = 0
    texts: int = 0
    refused: list[Path] = field(default_factory=list)  # files that are not UTF-8


def write_index(paths: Sequence[Path], model: str, output: Path, orders: int) -> None:
    """Write NgramTables of all files at and below the paths. Raises ConfigError, OSError or ValueError."""
    notes = Console(stderr=True)
    files = [file for path in paths for file in text_files(path)]
    if not files:
        raise ConfigError("there are no files to count in")
    if not output.parent.is_dir():
        raise ConfigError(f"there is no folder {output.parent} to write to")
    codec = TextCodec.load(find_model(model))
    work = Work(NgramCounter(codec.vocabulary, orders))
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), DownloadColumn()
    with Progress(*columns, TimeRemainingColumn(), console=notes) as progress:
        size = sum(file.stat().st_size for file in files)
        task = progress.add_task("counting", total=size)
        for file in files:
            _count(file, codec, work, lambda read: progress.advance(task, read))
        progress.update(task, description="sorting", completed=size)
        tables = work.counter.tables(codec.fingerprint)
        _save(tables, output)
    sizes = ", ".join(f"{len(level):,} of {order}" for order, level in zip(tables.orders, tables.levels, strict=True))
    notes.print(f"{work.tokens:,} tokens of {work.texts:,} files; different sequences: {sizes} tokens", highlight=False)
    notes.print(f"{output}: {output.stat().st_size / 1e6:.1f} MB", highlight=False)
    if work.refused:
        notes.print(f"left out, as they are not UTF-8 text: {', '.join(map(str, work.refused))}", style="yellow")


def _count(file: Path, codec: TextCodec, work: Work, advance: Callable[[int], None]) -> None:
    """advance: told how many bytes have been read."""
    try:
        for text in blocks(file):
            ids = codec.encode_plain(text)
            work.counter.add(ids)
            work.tokens += len(ids)
            advance(len(text.encode()))
        if codec.hf.eos_token_id is not None:  # drafts could not end where no text ever does
            work.counter.add([codec.hf.eos_token_id])
        work.texts += 1
    except UnicodeDecodeError:
        work.refused.append(file)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    work.counter.end_text()


def _save(tables: NgramTables, output: Path) -> None:
    """In one go: a server may be reading the file that is there."""
    part = output.with_name(output.name + ".part")
    try:
        tables.save(part)
        part.replace(output)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {output}: {error.strerror}") from None


def text_files(path: Path) -> Iterator[Path]:
    """The file, or the files below the folder, in order of their names and without hidden ones. Raises ConfigError."""
    if path.is_dir():
        for inner in sorted(path.iterdir()):
            if not inner.name.startswith(".") and (inner.is_dir() or inner.is_file()):
                yield from text_files(inner)
    elif path.is_file():
        yield path
    else:
        raise ConfigError(f"there is no file {path}")


def blocks(file: Path) -> Iterator[str]:
    """The text in pieces that end with a line, so that few tokens are cut. Raises UnicodeDecodeError or OSError."""
    with file.open(encoding="utf-8", newline="") as text:
        while block := text.read(BLOCK):
            yield block + text.readline(BLOCK)
