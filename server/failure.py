"""How a command ends that cannot do what it was asked to: one readable line, and an exit status."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console

STARTUP_EXIT = 2


def fail(message: str, status: int = STARTUP_EXIT) -> NoReturn:
    """Prints to stderr and leaves."""
    console = Console(stderr=True)
    console.print(f"drafthouse: {message}", style="red", highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(status)
