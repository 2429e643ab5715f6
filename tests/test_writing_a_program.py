"""docs/writing-a-program.md, run as written: the package is found through its metadata, tested, and served."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.process import Server, running
from tests.documented import Document, lay_out, prints_what_it_says, run

DOCUMENT = Document("writing-a-program.md")
GROUP = "drafthouse.programs"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder with its metadata, and a stranger that takes a name twice."""
    folder = tmp_path_factory.mktemp("package")
    for file in ("openings.py", "pyproject.toml", "test_openings.py"):
        (folder / file).write_text(DOCUMENT.named(file))
    project = tomllib.loads(DOCUMENT.named("pyproject.toml"))
    points = project["project"]["entry-points"]
    assert set(points) == {GROUP}
    assert [f"{module}.py" for module in project["tool"]["setuptools"]["py-modules"]] == ["openings.py"]
    lay_out(folder, project["project"]["name"], points, project["project"]["version"])
    (folder / "latecomer.py").write_text(DOCUMENT.named("openings.py").replace('name = "openings"', 'name = "beam"'))
    lay_out(folder, "latecomer", {GROUP: {"latecomer": "latecomer:Openings"}})
    return folder


@pytest.fixture(scope="module")
def server(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("log") / "log.txt", PYTHONPATH=str(package)) as server:
        yield server


def test_the_program_is_short() -> None:
    assert DOCUMENT.lines("openings.py", "pyproject.toml") <= 32


def test_its_own_tests_pass(package: Path) -> None:
    assert "2 passed" in run(package, sys.executable, "-m", "pytest", "-q", "test_openings.py")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_request_gets_its_openings(package: Path, server: Server) -> None:
    answer = json.loads(run(package, "sh", "-c", DOCUMENT.request("sh", server.url)))
    assert answer["drafthouse"]["sampler"][-1] == {"name": "openings", "margin": 4.0}
    choices = answer["choices"]
    assert len(choices) == 4 and all("#" not in choice["text"][:1] for choice in choices)
    assert all("\n" not in choice["text"] for choice in choices)
    assert len({choice["text"][:1] for choice in choices}) > 1
    for choice in choices:
        assert choice["drafthouse"]["logprob"] == pytest.approx(choice["cumulative_logprob"], abs=1e-3)


def test_the_client_prints_what_it_says(package: Path, server: Server) -> None:
    example = DOCUMENT.request("python", server.url)
    assert prints_what_it_says(example, run(package, sys.executable, "-c", example))


def test_a_value_out_of_range_is_refused_by_name(server: Server) -> None:
    body = {"model": "drafthouse-tiny", "prompt": "a", "sampler": {"name": "openings", "margin": -1}}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "sampler.margin" and "[0, 100]" in error["message"]


def test_a_name_that_is_taken_is_said_and_left_out(server: Server) -> None:
    log = server.output()
    assert "package 'latecomer' is not available: ValueError: program 'beam': the name is taken by" in log
    assert "Traceback" not in log
