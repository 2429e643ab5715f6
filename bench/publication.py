"""One table with the conditions it was measured under: printed, and written as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.hardware import describe


def publish(
    name: str, title: str, note: str, command: str, body: Sequence[str], data: dict[str, Any], output: Path | None
) -> None:
    """`note` says what else it was measured with; nothing is written where there is no `output` folder."""
    conditions = [f"{describe()}.", *([note] if note else []), f"Command: `{command}`."]
    text = "\n".join([f"## {title}", "", *conditions, "", *body])
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    if output is not None:
        (output / f"{name}.md").write_text(text + "\n", encoding="utf-8")
        document = {"hardware": describe(), "command": command, **data}
        (output / f"{name}.json").write_text(
            json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
