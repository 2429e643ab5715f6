"""`drafthouse vote run` against a fake server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from server.vote_cli.run import run
from tests.server.vote_cli.servers import FakeServer

USUAL: dict[str, Any] = {
    "out": None,
    "url": "http://fake/v1/",
    "model": None,
    "api_key": None,
    "endpoint": "chat",
    "samples": 4,
    "temperature": None,
    "top_p": None,
    "sampler": None,
    "max_tokens": None,
    "seed": 0,
    "top_logprobs": 20,
    "concurrency": 3,
    "timeout": 5.0,
    "retries": 1,
    "methods": "sc,pc",
    "params": None,
    "k": None,
    "repeats": 2,
    "equiv": "exact",
    "extract": "auto",
    "end_of_reasoning": None,
    "keep_truncated": False,
    "json": None,
    "plot": None,
}


def questions(folder: Path, *records: Any) -> Path:
    path = folder / "problems.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def three(folder: Path) -> Path:
    return questions(folder, *({"id": name, "prompt": f"Problem {name}?", "gold": 20} for name in "abc"))


def drawn(problems: Path, server: FakeServer, **options: Any) -> int:
    """The exit status. Raises what the command prints and leaves with status 2 for."""
    try:
        run(problems, **{**USUAL, **options}, transport=server.transport)
    except typer.Exit as leaving:
        return leaving.exit_code
    return 0


def lines(problems: Path) -> list[dict[str, Any]]:
    """What was written, without the first line."""
    text = problems.with_suffix(".samples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()[1:]]


def samples(problems: Path) -> list[dict[str, Any]]:
    return [sample for line in lines(problems) for sample in line["samples"]]
