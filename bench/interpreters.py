"""Pythons of other environments: servers that are compared need packages that exclude each other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

_WITH_VLLM = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"  # where the Makefile puts it
_ASK = """
import json
from importlib.metadata import distributions
from platform import python_version
print(json.dumps({"Python": python_version(), **{one.name.lower(): one.version for one in distributions()}}))
"""


class NoInterpreter(RuntimeError):
    """A Python is not there, or lacks a package."""


def python_with_vllm() -> str:
    """This interpreter if it has vLLM, else that of the environment which `make test-vllm` makes, even if it is not
    there."""
    return sys.executable if find_spec("vllm") is not None else str(_WITH_VLLM)


def versions(python: str, needed: Sequence[str], beside: Sequence[str] = ()) -> str:
    """Of an interpreter, of those of the packages that it has, one of `needed` at least, and of those beside. Raises
    NoInterpreter."""
    try:
        told = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoInterpreter(f"cannot run the Python '{python}': {error}") from None
    known = json.loads(told)
    if not known.keys() & set(needed):
        raise NoInterpreter(f"the Python '{python}' does not have {' or '.join(needed)}")
    return ", ".join(f"{name} {known[name]}" for name in ("Python", *needed, *beside) if name in known)
