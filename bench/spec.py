"""`drafthouse bench spec`: runs the parts asked for, prints their tables, writes Markdown, JSON and PNG."""

from __future__ import annotations

from pathlib import Path

import torch

from bench import (
    claims,
    figures,
    spec_acceptance,
    spec_figures,
    spec_load,
    spec_overhead,
    spec_passes,
    spec_rows_report,
    spec_speed,
    spec_times_report,
    spec_vocabulary,
)
from bench.claims import Claim
from bench.parts import Part
from bench.sampler_runs import Sampling
from models.embedded import DRAFT, TARGET

THREADS = 2
PARTS = {
    "speed": Part(
        "Speculation compared: one request at a time",
        spec_speed.FULL,
        spec_speed.QUICK,
        spec_speed.Measuring,
        spec_times_report.speed_markdown,
        spec_times_report.speed_json,
        spec_figures.draw_speed,
    ),
    "load": Part(
        "Speculation compared: many requests at once",
        spec_load.FULL,
        spec_load.QUICK,
        spec_load.Measuring,
        spec_times_report.load_markdown,
        spec_times_report.load_json,
        spec_figures.draw_load,
    ),
    "acceptance": Part(
        "Speculation compared: acceptance beside its optimum",
        spec_acceptance.FULL,
        spec_acceptance.QUICK,
        spec_acceptance.Measuring,
        spec_rows_report.acceptance_markdown,
        spec_rows_report.acceptance_json,
        spec_figures.draw_acceptance,
    ),
    "passes": Part(
        "Speculation compared: tokens per pass of the target",
        spec_passes.FULL,
        spec_passes.QUICK,
        spec_passes.Measuring,
        spec_rows_report.passes_markdown,
        spec_rows_report.passes_json,
        spec_figures.draw_passes,
    ),
    "vocabulary": Part(
        "Speculation compared: parts of the draft vocabulary",
        spec_vocabulary.FULL,
        spec_vocabulary.QUICK,
        spec_vocabulary.Measuring,
        spec_rows_report.vocabulary_markdown,
        spec_rows_report.vocabulary_json,
        spec_figures.draw_vocabulary,
    ),
    "overhead": Part(
        "Speculation compared: what is no forward pass",
        spec_overhead.FULL,
        spec_overhead.QUICK,
        spec_overhead.Measuring,
        spec_times_report.overhead_markdown,
        spec_times_report.overhead_json,
        spec_figures.draw_overhead,
    ),
}


def main(part: str, output: Path | None, quick: bool, threads: int) -> None:
    """Raises figures.NoFigures before anything is measured if the pictures that were asked for cannot be drawn, and
    claims.Violated, when everything has been written, if something does not hold that has to."""
    if output is not None:
        figures.require()
        output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    options = [f"--part {part}", "--quick" * quick, f"--threads {threads}" * (threads != THREADS)]
    command = " ".join(["drafthouse bench spec", *filter(None, options)])
    made: list[Claim] = []
    with Sampling(TARGET, threads, draft=DRAFT) as sampling:
        for name in [name for name in PARTS if part in (name, "all")]:
            made += PARTS[name].run(f"spec-{name}", sampling, quick, command, output)
    claims.require(made)
