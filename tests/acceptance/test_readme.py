"""README.md's examples, run as printed; only the address of the server is another one."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.embedded import TARGET
from tests.acceptance.process import environment

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"
EXAMPLE_S = 120


def fenced(language: str, containing: str = "") -> list[str]:
    """Blocks of a language, in order."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if containing in block]


def output(*command: str, folder: Path) -> str:
    """What an example prints; it must end well and print something."""
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=EXAMPLE_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "Traceback" not in done.stderr
    return done.stdout


def test_every_example_names_the_address() -> None:
    """Else an example below would talk to somebody else's server."""
    examples = fenced("python") + fenced("sh", "curl ")
    assert len(fenced("python")) >= 2 and len(examples) > len(fenced("python"))
    assert all(ADDRESS in example for example in examples)


@pytest.mark.parametrize("example", fenced("python"), ids=lambda text: text.splitlines()[-1][:40])
def test_python(server: str, example: str, tmp_path: Path) -> None:
    printed = output(sys.executable, "-c", example.replace(ADDRESS, server), folder=tmp_path)
    comments = re.findall(r"^# ?(.*)$", example, re.MULTILINE)
    if comments:  # the printed `drafthouse` object
        assert ast.literal_eval(printed.splitlines()[-1]) == ast.literal_eval("".join(comments))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server: str, tmp_path: Path) -> None:
    for example in fenced("sh", "curl "):
        answer = json.loads(output("sh", "-c", example.replace(ADDRESS, server), folder=tmp_path))
        assert answer["model"] == TARGET and answer["choices"][0]["message"]["content"]


def test_generate(tmp_path: Path) -> None:
    lines = [line for block in fenced("sh") for line in block.splitlines() if line.startswith("drafthouse generate")]
    assert lines
    for line in lines:
        _, *arguments = shlex.split(line, comments=True)
        output(str(Path(sys.executable).parent / "drafthouse"), *arguments, folder=tmp_path)


def test_help(tmp_path: Path) -> None:
    assert any("drafthouse serve --help" in block for block in fenced("sh"))
    assert "--model" in output(str(Path(sys.executable).parent / "drafthouse"), "serve", "--help", folder=tmp_path)
