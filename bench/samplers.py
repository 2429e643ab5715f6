"""`drafthouse bench samplers`: runs the parts asked for, prints their tables, writes Markdown, JSON and PNG."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from bench import figures, sampler_cost, sampler_figures, sampler_quality, sampler_report
from bench.progress import progress
from bench.publication import publish
from bench.sampler_methods import METHODS
from bench.sampler_runs import Sampling
from models.embedded import TARGET

THREADS = 2
QUICK_COST = sampler_cost.Size(rows=16, vocab=32_000, rounds=2, steps=1)


def main(part: str, problems: int | None, seeds: int | None, output: Path | None, quick: bool, threads: int) -> None:
    """Raises figures.NoFigures before anything is measured if the picture that was asked for cannot be drawn."""
    if output is not None:
        figures.require()
        output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    options = [f"--part {part}", "--quick" * quick, f"--threads {threads}" * (threads != THREADS)]
    options += [f"--{name} {value}" for name, value in (("problems", problems), ("seeds", seeds)) if value is not None]
    command = " ".join(["drafthouse bench samplers", *filter(None, options)])
    if part in ("quality", "all"):
        size = sampler_quality.QUICK if quick else sampler_quality.FULL
        if problems is not None:
            size = replace(size, problems=problems, prompts=max(1, problems * 3 // 4))
        if seeds is not None:
            size = replace(size, draws=seeds, pair_draws=max(seeds, size.pair_draws))
        _quality(size, threads, command, output)
    if part in ("cost", "all"):
        _cost(QUICK_COST if quick else sampler_cost.Size(), command, output)


def _quality(size: sampler_quality.Size, threads: int, command: str, output: Path | None) -> None:
    began = time.monotonic()
    with Sampling(TARGET, threads) as sampling:
        measuring = sampler_quality.Measuring(sampling, size, METHODS)
        with progress("sampling") as (begin, done):
            quality = measuring.measure(begin, done)
    seconds = time.monotonic() - began
    publish(
        "samplers-quality",
        "Samplers compared: quality",
        f"Model {TARGET}, {seconds / 60:.1f} minutes.",
        command,
        sampler_report.quality_markdown(quality),
        sampler_report.quality_json(quality),
        output,
    )
    if output is not None:
        sampler_figures.draw_quality(quality, output / "samplers-quality.png")


def _cost(size: sampler_cost.Size, command: str, output: Path | None) -> None:
    costing = sampler_cost.Costing(size)
    with progress("timing") as (begin, done):
        begin(costing.measurements)
        cost = costing.measure(done)
    publish(
        "samplers-cost",
        "Samplers compared: cost",
        "",
        command,
        sampler_report.cost_markdown(cost),
        sampler_report.cost_json(cost),
        output,
    )
    if output is not None:
        sampler_figures.draw_cost(cost, output / "samplers-cost.png")
