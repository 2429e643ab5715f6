"""`bench runners`: its client, its processes, figures by hand, and a run with three servers alike."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from bench import claims, figures, interpreters, runner_costs, runner_figures, runner_profile, runner_report, runners
from bench.process_group import ProcessGroup
from bench.runner_costs import Costs, Size, Start, Timing
from bench.runner_profile import Hot
from bench.runner_ways import CHAIN, OURS, TORCH, VLLM, WAYS, Rig, torch_arguments
from bench.server_process import HttpServer, ServerProcess
from bench.stream_load import LoadFailed, ask
from bench.tables import quartiles
from models.embedded import TARGET
from tests.server.live import Live, fake_state, start

TINY = Size(loads={1: 1, 3: 6}, tokens=6, rounds=1, starts=1, greedy=2, greedy_tokens=6)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    live = start(fake_state())
    yield live
    live.stop()


# --- the client


def port(live: Live) -> int:
    return int(live.url.rpartition(":")[2])


def test_a_load_is_what_was_asked(live: Live) -> None:
    bodies = [
        {"model": TARGET, "prompt": f"{i} one two", "max_tokens": 5 + i, "seed": i, "ignore_eos": True}
        for i in range(7)
    ]
    load = ask(port(live), bodies, 3)
    assert sorted(answer.tokens for answer in load.answers) == list(range(5, 12)) and load.tokens == sum(range(5, 12))
    assert all(0 < answer.first_s < load.seconds for answer in load.answers)
    answer = httpx.post(f"{live.url}/v1/completions", json=bodies[2]).json()
    assert answer["choices"][0]["text"] in {answer.text for answer in load.answers}
    assert answer["usage"]["prompt_tokens"] in {answer.prompt_tokens for answer in load.answers}


def test_a_refusal_is_no_load(live: Live) -> None:
    with pytest.raises(LoadFailed, match="404"):
        ask(port(live), [{"model": "nobody", "prompt": "x"}], 1)
    with pytest.raises(LoadFailed, match="ConnectionRefused"):
        ask(1, [{"model": TARGET, "prompt": "x"}], 1)


# --- processes


def test_a_group_stands_still_and_ends_as_a_whole() -> None:
    """A program that computes, and so does the one that it has started."""
    busy = "import subprocess, sys\nif sys.argv[1:]: subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
    group = ProcessGroup([sys.executable, "-c", f"{busy}while True: pass", "parent"])
    try:
        wait(lambda: len(group.processor_seconds()) == 2 and min(group.processor_seconds().values()) > 0.05)
        group.pause()
        time.sleep(0.05)  # a signal takes a moment to reach the other core
        before = group.processor_seconds()
        time.sleep(0.3)
        assert group.processor_seconds() == before and "" in before
        group.resume()
        wait(lambda: group.processor_seconds()[""] > before[""])
        group.pause()
    finally:
        group.end(grace_s=5)
    assert group.root.poll() is not None and group.processor_seconds() == {}


def wait(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def test_a_server_that_does_not_start_says_why() -> None:
    words = "import sys; sys.exit('there is no such thing')"
    server = HttpServer(lambda port: [sys.executable, "-c", words], quiet=True)
    with pytest.raises(RuntimeError, match="status 1:\nthere is no such thing"), server:
        pass


def test_interpreters(tmp_path: Path) -> None:
    found = interpreters.versions(sys.executable, ("torch", "vllm"), ("httpx",))
    assert found.startswith("Python 3.") and "torch 2." in found and "httpx 0." in found
    for python in (sys.executable, str(tmp_path / "python")):
        with pytest.raises(interpreters.NoInterpreter, match=python):
            interpreters.versions(python, ("nobody-has-this",))


# --- figures by hand


def by_hand() -> Costs:
    """Two rounds: ours 1.0 and 0.96 times as fast as vLLM's server, its first token 1.2 times as late."""
    costs = Costs(TINY, "By hand.")
    rates = {VLLM: (100.0, 200.0), OURS: (100.0, 192.0), CHAIN: (89.0, 182.0), TORCH: (130.0, 260.0)}
    for at_once in (1, 8):
        costs.timings[at_once] = {
            way: Timing(list(own), [0.12 if way == OURS else 0.1] * 2, [{"": 1.0, "VLLM::Worker": 2.0}] * 2)
            for way, own in rates.items()
        }
        costs.timings[at_once][TORCH].step_ms += [{"forward": 1.0}, {"forward": 3.0, "draft": 1.0}]
    costs.starts = {VLLM: Start([40.0], [50.0]), OURS: Start([41.0], [51.0]), TORCH: Start([8.0], [10.1])}
    return costs


def test_claims_by_hand() -> None:
    made = {claim.text: (claim.measured, claim.verdict) for claim in runner_costs.claims(by_hand())}
    assert len(made) == 10
    assert made[f"1 request at once: throughput of the {OURS} over {VLLM}: at least 0.97"] == (
        "0.98 (0.97..0.99)",
        "met",
    )
    assert made[f"8 requests at once: throughput of the {CHAIN} over {VLLM}: at least 0.9"][1] == "met"
    assert made[f"1 request at once: throughput of the {TORCH} over {VLLM}: at least 1.5"][1] == "missed"
    assert made[f"8 requests at once: throughput of the {TORCH} over {VLLM}: at least 1.2"][1] == "met"
    late = f"8 requests at once: time to first token of the {OURS} over {VLLM}: at most 1.1"
    assert made[late] == ("1.20 (1.20..1.20)", "missed")
    assert made[f"start of the {TORCH} until ready, over {VLLM}: at most 0.2"][1] == "met"
    assert made[f"start of the {TORCH} until its first token, over {VLLM}: at most 0.2"][1] == "missed"


def test_reports_and_picture_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    costs = by_hand()
    lines = runner_report.costs_markdown(costs)
    assert f"| 1 | {OURS} | 146 (123..169) | 0.98 (0.97..0.99) | 120.0 (120.0..120.0) | 1.20 (1.20..1.20) |" in lines
    assert f"| 8 | {TORCH} | 1.000 | 2.000 |" in lines  # the processor's time
    assert f"| 8 | {TORCH} | 2.000 | 0.500 |" in lines  # parts of steps
    document = json.loads(json.dumps(runner_report.costs_json(costs), allow_nan=False))
    assert document["loads"][1]["ways"][CHAIN]["tokens_per_s"] == [89.0, 182.0]
    runner_figures.draw_costs(costs, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_hottest_by_hand() -> None:
    """Nested processes, as py-spy writes them; recursion counts once, waiting not at all."""
    stacks = """process 7:"/bin/python -m server.cli";main (cli.py);poll (loop.py) 2
process 7:"/bin/python -m server.cli";main (cli.py);main (cli.py);send (loop.py) 1
process 7:"/bin/python -m server.cli";process 9:"VLLM::Worker";run (worker.py);forward (model.py) 6
process 7:"/bin/python -m server.cli";process 9:"VLLM::Worker";run (worker.py) 1
process 7:"/bin/python -m server.cli";process 9:"VLLM::Worker";watch (worker.py);Condition.wait (threading.py:295) 9
"""
    assert runner_profile.hottest(stacks, 7) == [
        Hot("VLLM::Worker", "forward (model.py)", 0.6, 0.6),
        Hot("VLLM::Worker", "run (worker.py)", 0.1, 0.7),
        Hot("", "poll (loop.py)", 0.2, 0.2),
        Hot("", "send (loop.py)", 0.1, 0.1),
    ]


@pytest.mark.skipif(shutil.which("py-spy") is None, reason="py-spy is not installed")
def test_a_profile_of_a_program(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text("def busy():\n    while True:\n        pass\n\n\nbusy()\n")
    with subprocess.Popen([sys.executable, str(tmp_path / "busy.py")]) as program:
        with runner_profile.sampled(program.pid, tmp_path / "stacks.txt"):
            time.sleep(0.5)
        program.kill()
    first, *_ = runner_profile.hottest((tmp_path / "stacks.txt").read_text(), program.pid)
    assert first.function.startswith("busy") and first.own > 0.5 and first.process == ""


def test_quartiles() -> None:
    assert quartiles([1.0, 2.0, 3.0, 4.0, 100.0], 1) == "3.0 (2.0..4.0)" and quartiles([7.0], 0) == "7 (7..7)"


# --- the measurement


@pytest.mark.slow
def test_a_run_with_the_torch_runner_everywhere() -> None:
    before = time.monotonic()
    started: list[HttpServer] = []

    def server() -> HttpServer:
        started.append(ServerProcess(*torch_arguments(1), quiet=True))
        return started[-1]

    counted: list[int] = []
    measuring = runner_costs.Measuring(Rig(dict.fromkeys((VLLM, OURS, TORCH), server), "All alike."), TINY)
    costs = measuring.measure(counted.append, lambda: counted.append(1))
    assert counted[0] == sum(counted[1:]) == 3 + 2 * 2 * len(WAYS)
    assert set(costs.timings) == {1, 3} and all(
        set(ways) == {way.name for way in WAYS} for ways in costs.timings.values()
    )
    for ways in costs.timings.values():
        for timing in ways.values():
            assert len(timing.tokens_per_s) == len(timing.first_s) == 1 and timing.tokens_per_s[0] > 0
            assert timing.processor_ms[0][""] > 0 and timing.step_ms[0]["forward"] > 0
    for own in costs.starts.values():
        assert 0 < own.ready_s[0] < own.answered_s[0] < time.monotonic() - before
    assert [claim.verdict for claim in costs.claims[:2]] == ["holds", "holds"]
    assert len(started) == 3 and all(one.group.root.poll() is not None for one in started)
    claims.require(costs.claims)


def test_without_what_it_needs_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(interpreters.NoInterpreter):
        runners.main(None, True, 1, str(tmp_path / "python"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(figures.NoFigures):
        runners.main(tmp_path / "new", True, 1)
    assert not (tmp_path / "new").exists()
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(runner_profile.NoProfiler):
        runners.main(None, True, 1, profile=True)
