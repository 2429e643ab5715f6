"""`drafthouse bench runners`: vLLM's server, ours over vLLM and ours over torch, side by side in one run."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from bench import claims, figures, runner_costs, runner_figures, runner_profile, runner_report
from bench.interpreters import python_with_vllm
from bench.parts import Part
from bench.runner_ways import rig
from engine.runners.vllm.arguments import set_environment

PART = Part(
    "Runners compared",
    runner_costs.FULL,
    runner_costs.QUICK,
    runner_costs.Measuring,
    runner_report.costs_markdown,
    runner_report.costs_json,
    runner_figures.draw_costs,
)


def main(
    output: Path | None,
    quick: bool,
    threads: int | None,
    vllm_python: str | None = None,
    torch_python: str | None = None,
    torch_threads: int | None = None,
    profile: bool = False,
) -> None:
    """threads, torch_threads: of the model inside vLLM and in the torch runner; None: as many as either takes by
    itself, all cores, of which vLLM leaves one to its other processes; profile: after everything else; the samples go
    to `output`, which has to be given.

    Raises figures.NoFigures, NoInterpreter and NoProfiler before anything is measured, RuntimeError for a server that
    fails, and claims.Violated, when everything has been written, if texts differ that have to be the same."""
    if output is not None:
        figures.require()
        output.mkdir(parents=True, exist_ok=True)
    if profile:
        runner_profile.require()
    of_vllm, of_torch = vllm_python or python_with_vllm(), torch_python or sys.executable
    cores = len(os.sched_getaffinity(0))
    inside, own = threads or max(1, cores - 1), torch_threads or cores
    measured_with = rig(of_vllm, of_torch, inside, own, output if profile else None)
    torch.set_num_threads(own)
    set_environment()
    signal.signal(signal.SIGTERM, _leave)  # or servers would be left behind, standing still
    options = ["--quick" * quick, "--profile" * profile, f"--threads {threads}" if threads else ""]
    options.append(f"--torch-threads {torch_threads}" if torch_threads else "")
    command = " ".join(["drafthouse bench runners", *filter(None, options)])
    claims.require(PART.run("runners", measured_with, quick, command, output))


def _leave(number: int, frame: Any) -> None:
    sys.exit(128 + number)
