"""`drafthouse vote run` against a real server: interrupted, gone on with, compared with the server's own answers."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.problems import problems
from tests.acceptance.process import command, environment
from tests.acceptance.reference import MODEL

pytestmark = pytest.mark.slow  # starts processes
COMMAND_S = 120.0
SAMPLES = 6


def written(folder: Path) -> Path:
    path = folder / "problems.jsonl"
    asked = islice(problems(7, held_out=True), 16)
    lines = [{"id": f"w{i}", "prompt": one.question, "gold": one.answer} for i, one in enumerate(asked)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def hear_sigint() -> None:
    """Where tests run in the background, their children are born deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupted_and_gone_on_with(server: str, http: httpx.Client, tmp_path: Path) -> None:
    path = written(tmp_path)
    samples, numbers = path.with_suffix(".samples.jsonl"), tmp_path / "out.json"
    arguments = command(
        "vote", "run", str(path), "--url", f"{server}/v1", "--samples", str(SAMPLES), "--temperature", "0.8",
        "--max-tokens", "64", "--repeats", "2", "--methods", "sc,rpc,iew", "--json", str(numbers),
    )  # fmt: skip
    with subprocess.Popen(
        [*arguments, "--concurrency", "1"], env=environment(), stderr=subprocess.PIPE, text=True, preexec_fn=hear_sigint
    ) as process:
        deadline = time.monotonic() + COMMAND_S
        while not (samples.exists() and samples.read_bytes().count(b"\n") > 2):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
    before = samples.read_bytes().splitlines()
    assert 3 <= len(before) < 17

    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=COMMAND_S)
    assert done.returncode == 0 and "16 of 16 problems" in done.stderr
    after = samples.read_bytes().splitlines()
    assert after[: len(before)] == before and len(after) == 17
    assert json.loads(numbers.read_text())["results"].keys() == {"sc", "rpc", "iew"}

    drawn: dict[str, Any] = json.loads(after[5])
    fields = {"model": MODEL, "messages": [{"role": "user", "content": drawn["prompt"]}], "temperature": 0.8}
    seed = drawn["samples"][0]["seed"]
    extras = {"n": SAMPLES, "seed": seed, "max_tokens": 64, "return_token_ids": True}
    choices = http.post("/v1/chat/completions", json=fields | extras).raise_for_status().json()["choices"]
    for one, choice in zip(drawn["samples"], choices, strict=True):  # sample i is choice i of n = K
        assert (one["text"], one["token_ids"]) == (choice["message"]["content"], choice["token_ids"])
        assert one["mean_logprob"] == pytest.approx(choice["cumulative_logprob"] / len(choice["token_ids"]), abs=1e-5)
