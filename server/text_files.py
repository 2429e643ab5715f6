"""Text files that commands are given: found, read in blocks behind a progress bar; and what is made of them, written.

Every file is one text in UTF-8. Knows nothing about tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from server.config import ConfigError

BLOCK = 2**20  # characters that are read at once; the rest of the line is not left behind


class TextFile:
    """One text. Looping over it reads it; it ends before what is not UTF-8."""

    def __init__(self, path: Path, advance: Callable[[int], None]) -> None:
        """advance: told how many bytes have been read."""
        self.path = path
        self.whole = False  # it has been read to its end
        self._advance = advance

    def __iter__(self) -> Iterator[str]:
        """Its blocks. Raises ConfigError."""
        try:
            for block in blocks(self.path):
                yield block
                self._advance(len(block.encode()))
            self.whole = True
        except UnicodeDecodeError:
            return
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {error.strerror}") from None


class TextFiles:
    """All files at and below some paths. Looping over them shows how far it is."""

    def __init__(self, paths: Sequence[Path], notes: Console) -> None:
        """notes: where the progress bar goes. Raises ConfigError."""
        self._files = [file for path in paths for file in text_files(path)]
        if not self._files:
            raise ConfigError("there are no files to count in")
        self._notes = notes
        self.whole = 0  # texts that have been read to their end
        self.refused: list[Path] = []  # files that are not UTF-8

    def __iter__(self) -> Iterator[TextFile]:
        """Each is to be read before the next."""
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), DownloadColumn()
        with Progress(*columns, TimeRemainingColumn(), console=self._notes) as progress:
            size = sum(file.stat().st_size for file in self._files)
            task = progress.add_task("counting", total=size)
            for path in self._files:
                text = TextFile(path, lambda read: progress.advance(task, read))
                yield text
                if text.whole:
                    self.whole += 1
                else:
                    self.refused.append(path)
            progress.update(task, completed=size)

    def note_refused(self) -> None:
        if self.refused:
            names = ", ".join(map(str, self.refused))
            self._notes.print(f"left out, as they are not UTF-8 text: {names}", style="yellow")


def check_folder(output: Path) -> None:
    """Before long work: raises ConfigError if there is no folder for a file."""
    if not output.parent.is_dir():
        raise ConfigError(f"there is no folder {output.parent} to write to")


def replace_file(output: Path, save: Callable[[Path], None]) -> None:
    """In one go: a server may be reading the file that is there. Raises ConfigError."""
    part = output.with_name(output.name + ".part")
    try:
        save(part)
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
