"""`drafthouse bench programs`: runs the parts asked for, prints their tables, writes Markdown, JSON and PNG."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from bench import (
    claims,
    figures,
    program_eager,
    program_figures,
    program_priority,
    program_report,
    program_superposed,
)
from bench.claims import Claim
from bench.parts import Part
from bench.program_ngrams import training_ngrams
from bench.progress import progress
from bench.sampler_runs import Sampling
from models.embedded import TARGET, locate
from server.text.codec import TextCodec

THREADS = 2


PARTS = {
    "priority": Part(
        "Programs compared: priority sampling beside nucleus samples",
        program_priority.FULL,
        program_priority.QUICK,
        program_priority.Measuring,
        program_report.priority_markdown,
        program_report.priority_json,
        program_figures.draw_priority,
    ),
    "superposed": Part(
        "Programs compared: superposed drafts beside independent samples",
        program_superposed.FULL,
        program_superposed.QUICK,
        program_superposed.Measuring,
        program_report.superposed_markdown,
        program_report.superposed_json,
        program_figures.draw_superposed,
    ),
    "eager": Part(
        "Programs compared: EAGER beside parallel samples",
        program_eager.FULL,
        program_eager.QUICK,
        program_eager.Measuring,
        program_report.eager_markdown,
        program_report.eager_json,
        program_figures.draw_eager,
    ),
}


def main(part: str, output: Path | None, quick: bool, threads: int, ngrams: bool) -> None:
    """Raises figures.NoFigures before anything is measured if the pictures that were asked for cannot be drawn, and
    claims.Violated, when everything has been written, if something does not hold that has to."""
    if output is not None:
        figures.require()
        output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    options = [f"--part {part}", "--quick" * quick, f"--threads {threads}" * (threads != THREADS)]
    command = " ".join(["drafthouse bench programs", *filter(None, [*options, "--no-ngrams" * (not ngrams)])])
    names = [name for name in PARTS if part in (name, "all")]
    made: list[Claim] = []
    with tempfile.TemporaryDirectory() as folder:
        tables = _write_ngrams(Path(folder)) if ngrams and "superposed" in names else None
        with Sampling(TARGET, threads, tables) as sampling:
            for name in names:
                made += PARTS[name].run(f"programs-{name}", sampling, quick, command, output)
    claims.require(made)


def _write_ngrams(folder: Path) -> Path:
    file = folder / "training.ngrams"
    with progress("counting n-grams") as (begin, done):
        training_ngrams(TextCodec.load(locate(TARGET)), begin, done).save(file)
    return file
