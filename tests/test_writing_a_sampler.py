"""docs/writing-a-sampler.md, run as written: the package is found through its metadata, tested, and served."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.process import Server, running
from tests.documented import Document, lay_out, prints_what_it_says, run

DOCUMENT = Document("writing-a-sampler.md")
GROUPS = ("drafthouse.samplers", "drafthouse.draws")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, with files that no document has shown: its own metadata, and two broken strangers."""
    folder = tmp_path_factory.mktemp("package")
    for file in ("detour.py", "pyproject.toml", "test_detour.py"):
        (folder / file).write_text(DOCUMENT.named(file))
    project = tomllib.loads(DOCUMENT.named("pyproject.toml"))
    points = project["project"]["entry-points"]
    assert set(points) <= set(GROUPS)
    assert [f"{module}.py" for module in project["tool"]["setuptools"]["py-modules"]] == ["detour.py"]
    lay_out(folder, project["project"]["name"], points, project["project"]["version"])
    (folder / "careless.py").write_text("raise RuntimeError('careless at import')\n")
    lay_out(folder, "careless", {GROUPS[0]: {"careless": "careless:Stage"}, GROUPS[1]: {"gone": "not_there:Draw"}})
    (folder / "latecomer.py").write_text(DOCUMENT.named("detour.py").replace('name = "detour"', 'name = "top_p"'))
    lay_out(folder, "latecomer", {GROUPS[0]: {"latecomer": "latecomer:Detour"}})
    return folder


@pytest.fixture(scope="module")
def server(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("log") / "log.txt", PYTHONPATH=str(package)) as server:
        yield server


def test_the_stage_is_short() -> None:
    assert DOCUMENT.lines("detour.py", "pyproject.toml") <= 30


def test_its_own_test_passes(package: Path) -> None:
    assert "1 passed" in run(package, sys.executable, "-m", "pytest", "-q", "test_detour.py")


def plain(server: Server) -> dict[str, Any]:
    body = {"model": "drafthouse-tiny", "prompt": "def read_lines(path):\n", "max_tokens": 12, "temperature": 0}
    return httpx.post(f"{server.url}/v1/completions", json={**body, "logprobs": 2}, timeout=120).json()["choices"][0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_request_takes_its_detours(package: Path, server: Server) -> None:
    answer = json.loads(run(package, "sh", "-c", DOCUMENT.request("sh", server.url)))
    assert answer["drafthouse"]["sampler"][0] == {"name": "detour", "detour": 4}
    scores = answer["choices"][0]["logprobs"]
    straight = plain(server)["logprobs"]["tokens"]
    assert len(scores["tokens"]) == 12 and scores["tokens"][:3] == straight[:3] and scores["tokens"][3] != straight[3]
    for position, (chosen, top) in enumerate(zip(scores["token_logprobs"], scores["top_logprobs"], strict=True)):
        best, second = sorted(top.values(), reverse=True)[:2]
        assert chosen == pytest.approx(second if position % 4 == 3 else best, abs=1e-4), position


def test_the_client_prints_what_it_says(package: Path, server: Server) -> None:
    example = DOCUMENT.request("python", server.url)
    assert prints_what_it_says(example, run(package, sys.executable, "-c", example))


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
