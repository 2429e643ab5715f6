"""The parts of a benchmark: each measures, prints a table, and writes Markdown, JSON and a PNG."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.claims import Claim
from bench.progress import Begin, Done, progress
from bench.publication import publish
from models.embedded import TARGET


class Measuring(Protocol):
    """Measures once. What it returns has `claims`."""

    def measure(self, begin: Begin, done: Done) -> Any: ...


@dataclass(frozen=True)
class Part:
    """One table and its picture. `full` and `quick` are sizes; `measuring` gets what the benchmark measures with, and a
    size; what it measures goes to all that follow."""

    title: str
    full: Any
    quick: Any
    measuring: Callable[[Any, Any], Measuring]
    markdown: Callable[[Any], list[str]]
    json: Callable[[Any], dict[str, Any]]
    draw: Callable[[Any, Path], None]

    def run(self, name: str, measured_with: Any, quick: bool, command: str, output: Path | None) -> list[Claim]:
        """`name`: of the part and of its files."""
        began = time.monotonic()
        measuring = self.measuring(measured_with, self.quick if quick else self.full)
        with progress(name) as (begin, done):
            measured = measuring.measure(begin, done)
        note = f"Model {TARGET}, {(time.monotonic() - began) / 60:.1f} minutes."
        publish(name, self.title, note, command, self.markdown(measured), self.json(measured), output)
        if output is not None:
            self.draw(measured, output / f"{name}.png")
        made: list[Claim] = measured.claims
        return made
