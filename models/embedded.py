"""Where the embedded models lie, by the names they are served under."""

from __future__ import annotations

from pathlib import Path

TARGET = "drafthouse-tiny"
DRAFT = "drafthouse-tiny-draft"
EMBEDDED = {name: Path(__file__).parent / name for name in (TARGET, DRAFT)}


def locate(model: str) -> str:
    """The folder of an embedded model's name; anything else (a folder or hub id) is returned as it is."""
    return str(EMBEDDED[model]) if model in EMBEDDED else model
