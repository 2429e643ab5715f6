"""`drafthouse bench runners`: vLLM's server, ours over vLLM and ours over torch, side by side in one run."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import torch

from bench import claims, figures, runner_costs, runner_figures, runner_report
from bench.interpreters import python_with_vllm
from bench.parts import Part
from bench.runner_ways import rig
from engine.runners.vllm.arguments import set_environment

THREADS = 1
PART = Part(
    "Runners compared",
    runner_costs.FULL,
    runner_costs.QUICK,
    runner_costs.Measuring,
    runner_report.costs_markdown,
    runner_report.costs_json,
    runner_figures.draw_costs,
)


def main(output: Path | None, quick: bool, threads: int, vllm_python: str | None, torch_python: str | None) -> None:
    """Raises figures.NoFigures and NoInterpreter before anything is measured, RuntimeError for a server that fails, and
    claims.Violated, when everything has been written, if texts differ that have to be the same."""
    if output is not None:
        figures.require()
        output.mkdir(parents=True, exist_ok=True)
    measured_with = rig(vllm_python or python_with_vllm(), torch_python or sys.executable, threads)
    torch.set_num_threads(threads)
    set_environment()
    signal.signal(signal.SIGTERM, _leave)  # or servers would be left behind, standing still
    options = ["--quick" * quick, f"--threads {threads}" * (threads != THREADS)]
    command = " ".join(["drafthouse bench runners", *filter(None, options)])
    claims.require(PART.run("runners", measured_with, quick, command, output))


def _leave(number: int, frame: Any) -> None:
    sys.exit(128 + number)
