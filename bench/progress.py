"""A progress bar for a measurement whose number of pieces is known once it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Begin = Callable[[int], None]
Done = Callable[[], None]


@contextmanager
def progress(what: str) -> Iterator[tuple[Begin, Done]]:
    """(tell it the number of pieces, tell it that one is done); on stderr, so that the table can be piped."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def begin(total: int) -> None:
            bar.update(task, total=total)

        yield begin, lambda: bar.advance(task)
