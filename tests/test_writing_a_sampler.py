"""docs/writing-a-sampler.md, run as written: the package is found through its metadata, tested, and served."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.process import Server, environment, running

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "writing-a-sampler.md").read_text()
ADDRESS = "http://127.0.0.1:8000"
GROUPS = ("drafthouse.samplers", "drafthouse.draws")
EXAMPLE_S = 300


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def named(file: str) -> str:
    """The block behind the line that names its file."""
    found = re.search(rf"^\*\*{re.escape(file)}\*\*\n\n```\w+\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no block for {file}"
    return found.group(1)


def lay_out(folder: Path, name: str, groups: dict[str, dict[str, str]], version: str = "0.1") -> None:
    """What an installer leaves behind for a package with these entry points."""
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, with files that no document has shown: its own metadata, and two broken strangers."""
    folder = tmp_path_factory.mktemp("package")
    for file in ("detour.py", "pyproject.toml", "test_detour.py"):
        (folder / file).write_text(named(file))
    project = tomllib.loads(named("pyproject.toml"))
    points = project["project"]["entry-points"]
    assert set(points) <= set(GROUPS)
    assert [f"{module}.py" for module in project["tool"]["setuptools"]["py-modules"]] == ["detour.py"]
    lay_out(folder, project["project"]["name"], points, project["project"]["version"])
    (folder / "careless.py").write_text("raise RuntimeError('careless at import')\n")
    lay_out(folder, "careless", {GROUPS[0]: {"careless": "careless:Stage"}, GROUPS[1]: {"gone": "not_there:Draw"}})
    (folder / "latecomer.py").write_text(named("detour.py").replace('name = "detour"', 'name = "top_p"'))
    lay_out(folder, "latecomer", {GROUPS[0]: {"latecomer": "latecomer:Detour"}})
    return folder


@pytest.fixture(scope="module")
def server(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("log") / "log.txt", PYTHONPATH=str(package)) as server:
        yield server


def run(package: Path, *command: str) -> str:
    done = subprocess.run(
        command,
        cwd=package,
        env=environment(PYTHONPATH=str(package)),
        capture_output=True,
        text=True,
        timeout=EXAMPLE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_stage_is_short() -> None:
    lines = [line for block in (named("detour.py"), named("pyproject.toml")) for line in block.splitlines() if line]
    assert len(lines) <= 30


def test_its_own_test_passes(package: Path) -> None:
    assert "1 passed" in run(package, sys.executable, "-m", "pytest", "-q", "test_detour.py")


def plain(server: Server) -> dict[str, Any]:
    body = {"model": "drafthouse-tiny", "prompt": "def read_lines(path):\n", "max_tokens": 12, "temperature": 0}
    return httpx.post(f"{server.url}/v1/completions", json={**body, "logprobs": 2}, timeout=120).json()["choices"][0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_request_takes_its_detours(package: Path, server: Server) -> None:
    (example,) = blocks("sh")
    assert ADDRESS in example
    answer = json.loads(run(package, "sh", "-c", example.replace(ADDRESS, server.url)))
    assert answer["drafthouse"]["sampler"][0] == {"name": "detour", "detour": 4}
    scores = answer["choices"][0]["logprobs"]
    straight = plain(server)["logprobs"]["tokens"]
    assert len(scores["tokens"]) == 12 and scores["tokens"][:3] == straight[:3] and scores["tokens"][3] != straight[3]
    for position, (chosen, top) in enumerate(zip(scores["token_logprobs"], scores["top_logprobs"], strict=True)):
        best, second = sorted(top.values(), reverse=True)[:2]
        assert chosen == pytest.approx(second if position % 4 == 3 else best, abs=1e-4), position


def test_the_client_prints_what_it_says(package: Path, server: Server) -> None:
    example = next(block for block in blocks("python") if ADDRESS in block)
    printed = run(package, sys.executable, "-c", example.replace(ADDRESS, server.url))
    says = re.findall(r"^# ?(.*)$", example, re.MULTILINE)
    assert ast.literal_eval(printed.splitlines()[-1]) == ast.literal_eval("".join(says))


def test_a_value_out_of_range_is_refused_by_name(server: Server) -> None:
    body = {"model": "drafthouse-tiny", "prompt": "a", "sampler": {"name": "detour", "detour": -1}}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "sampler.detour" and "[0, 10000]" in error["message"]


def test_broken_packages_are_named_and_left_out(server: Server) -> None:
    log = server.output()
    assert "package 'careless' is not available: RuntimeError: careless at import" in log
    assert "'gone' (not_there:Draw) of package 'careless' is not available: ModuleNotFoundError" in log
    assert "package 'latecomer' is not available: ValueError: sampler stage 'top_p': the name is taken by" in log
    assert "samplers.top_p.TopP" in log and "Traceback" not in log
