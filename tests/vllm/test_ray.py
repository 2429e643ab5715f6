"""vLLM's Ray backends, over a Ray that the tests start.

vLLM's CPU platform does not say which of Ray's resources its workers take, and refuses Ray for that; the tests say it
(`cpu_for_ray.py`). The rest is what runs on GPUs: Ray's processes, and vLLM's executor and engines in them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.acceptance.process import EXIT_S, environment, free_port
from tests.documented import lay_out
from tests.vllm.engine_process import INSTALLED, VARIABLES, end, standing
from tests.vllm.test_parallel import agrees

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not INSTALLED or find_spec("ray") is None, reason="vLLM or Ray is not installed"),
]

ROOT = Path(__file__).parents[2]
START_S = 120.0
NAMED = {"vllm.platform_plugins": {"cpu_for_ray": "tests.vllm.cpu_for_ray:qualified_name"}}


@pytest.fixture
def ray(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Ray of its own, with two devices that are none; the variables of a process that uses it."""
    lay_out(tmp_path, "cpu_for_ray", NAMED)
    port, log = free_port(), tmp_path / "ray.log"
    folder = tempfile.mkdtemp(prefix="ray-")  # its sockets' paths have to be short
    path = os.pathsep.join([str(ROOT), str(tmp_path), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": path, "RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_USAGE_STATS_ENABLED": "0"}
    variables["RAY_TMPDIR"] = folder
    flags = {
        "port": port,
        "ray-client-server-port": free_port(),
        "num-gpus": 2,
        "num-cpus": 4,
        "object-store-memory": 100_000_000,
        "include-dashboard": "false",
        "temp-dir": folder,
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in flags.items())],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(**VARIABLES, **variables),
        )
    try:
        deadline = time.monotonic() + START_S
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield variables
        process.terminate()
        process.wait(EXIT_S)
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def test_engines_and_workers_of_ray_have_the_same_tokens(
    raw: httpx.Client, ray: dict[str, str], tmp_path: Path
) -> None:
    """Engines are actors, and so are their workers."""
    arguments = ("data_parallel_size=2", "data_parallel_backend=ray")
    with standing(tmp_path / "log", *arguments, **ray) as server:
        with httpx.Client(base_url=server.url, timeout=60) as other:
            agrees(raw, other)
        logs = Path(ray["RAY_TMPDIR"], "session_latest", "logs")  # of Ray's processes, by what runs in them
        written = "".join(path.read_text(errors="replace") for path in logs.glob("worker-*"))
        assert "EngineCoreActor" in written and "RayWorkerProc" in written
