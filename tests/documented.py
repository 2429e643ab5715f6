"""Examples of a document, taken out of it and run as written."""

from __future__ import annotations

import ast
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.process import environment

DOCS = Path(__file__).parent.parent / "docs"
ADDRESS = "http://127.0.0.1:8000"
EXAMPLE_S = 300


@dataclass(frozen=True)
class Document:
    """One of `docs/`."""

    name: str

    @property
    def text(self) -> str:
        return (DOCS / self.name).read_text()

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)

    def named(self, file: str) -> str:
        """The block behind the line that names its file."""
        found = re.search(rf"^\*\*{re.escape(file)}\*\*\n\n```\w+\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        assert found, f"no block for {file}"
        return found.group(1)

    def request(self, language: str, url: str) -> str:
        """The block in this language that talks to a server, talking to the one at `url`."""
        (example,) = (block for block in self.blocks(language) if ADDRESS in block)
        return example.replace(ADDRESS, url)

    def lines(self, *files: str) -> int:
        """Lines of code of these together."""
        return sum(bool(line.strip()) for file in files for line in self.named(file).splitlines())


def lay_out(folder: Path, name: str, groups: dict[str, dict[str, str]], version: str = "0.1") -> None:
    """What an installer leaves behind for a package with these entry points."""
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


def run(package: Path, *command: str) -> str:
    """What a command prints that knows the package; it has to end well."""
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


def prints_what_it_says(example: str, printed: str) -> bool:
    """Whether the last line printed is the value that the example's comments promise."""
    says = "".join(re.findall(r"^# ?(.*)$", example, re.MULTILINE))
    return bool(ast.literal_eval(printed.splitlines()[-1]) == ast.literal_eval(says))
