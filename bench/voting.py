"""`drafthouse bench voting`: runs the parts asked for, prints their tables, writes Markdown, JSON and PNG."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from bench import (
    figures,
    vote_cost,
    vote_draws,
    vote_figures,
    vote_report,
    vote_rules,
    vote_special,
    vote_stopping,
)
from bench.parts import Part
from bench.sampler_runs import Sampling
from bench.vote_samples import Drawing, Size
from models.embedded import TARGET

THREADS = 2
FULL = Size()
QUICK = Size(problems=8, repeats=4, special_problems=4, chains=1, verbalised=4)


# of samples in files
SAMPLED = {
    "rules": Part(
        "Voting rules compared",
        FULL,
        QUICK,
        vote_rules.Measuring,
        vote_report.rules_markdown,
        vote_report.rules_json,
        vote_figures.draw_rules,
    ),
    "special": Part(
        "Voting rules compared: other prompts, chains and aborted samples",
        FULL,
        QUICK,
        vote_special.Measuring,
        vote_report.special_markdown,
        vote_report.special_json,
        vote_figures.draw_special,
    ),
    "stopping": Part(
        "Voting rules compared: adaptive stopping",
        FULL,
        QUICK,
        vote_stopping.Measuring,
        vote_report.stopping_markdown,
        vote_report.stopping_json,
        vote_figures.draw_stopping,
    ),
    "draws": Part(
        "Voting rules compared: arithmetic samples beside independent ones",
        FULL,
        QUICK,
        vote_draws.Measuring,
        vote_report.draws_markdown,
        vote_report.draws_json,
        vote_figures.draw_draws,
    ),
}
COST = Part(
    "Voting rules compared: cost",
    vote_cost.FULL,
    vote_cost.QUICK,
    vote_cost.Measuring,
    vote_report.cost_markdown,
    vote_report.cost_json,
    vote_figures.draw_cost,
)


def main(part: str, samples: Path | None, output: Path | None, quick: bool, threads: int) -> None:
    """`samples`: the folder of their files; without one they are thrown away. Raises figures.NoFigures before anything
    is measured if the pictures that were asked for cannot be drawn, and SamplesFileError for other samples."""
    if output is not None:
        figures.require()
        output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    options = [f"--part {part}", "--quick" * quick, f"--threads {threads}" * (threads != THREADS)]
    command = " ".join(["drafthouse bench voting", *filter(None, options)])
    names = [name for name in SAMPLED if part in (name, "all")]
    if names:
        with tempfile.TemporaryDirectory() as scratch, Sampling(TARGET, threads) as sampling:
            drawing = Drawing(sampling, samples or Path(scratch), QUICK if quick else FULL)
            for name in names:
                SAMPLED[name].run(f"voting-{name}", drawing, quick, command, output)
    if part in ("cost", "all"):
        COST.run("voting-cost", threads, quick, command, output)
