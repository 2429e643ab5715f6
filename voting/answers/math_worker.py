"""Asks math-verify whether two answers are equal: the program of a worker process, which may hang, crash or be killed.

Reads lines of JSON, [answer, other answer, "and" | "or"], and writes one byte for each: 1 equal, 0 different. An
answer asked with itself is equal if it can be read and compared with a number, too. Writes an r when it is ready.
Imports nothing of ours, so that a worker costs what math-verify does. Ends with its input.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

MEMORY_BYTES = 512 << 20  # of address space; math-verify needs 60 MiB of it
PROBE = "1.5"
_ORPHAN_S = 10  # after which a worker ends itself that nobody has killed
# Words are names and not products of their letters, so that `listen` is not `silent`. A command keeps its first
# argument if that is words.
_WORDS = re.compile(r"\\[A-Za-z]+(?:\{[A-Za-z ]*\})?|[A-Za-z]{3,}(?:\s+[A-Za-z]+)*")


def formula(answer: str) -> str:
    """The answer in an environment of LaTeX, which math-verify wants."""
    named = _WORDS.sub(lambda part: part[0] if part[0].startswith("\\") else rf"\text{{{part[0]}}}", answer)
    return f"${named}$"


def main() -> None:
    from math_verify import LatexExtractionConfig, parse, verify

    @lru_cache(256)
    def parsed(answer: str) -> Any:
        configuration = (LatexExtractionConfig(),)
        return parse(formula(answer), configuration, fallback_mode="no_fallback", parsing_timeout=None)

    def agree(gold: str, target: str) -> bool:
        return bool(verify(parsed(gold), parsed(target), timeout_seconds=None))

    def sound(answer: str) -> bool:
        agree(answer, PROBE)  # what is the same is not evaluated, and towers of powers would pass
        return agree(answer, answer)

    verdicts = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whatever a library prints is no verdict
    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    agree("x^2+2x+1", r"(x+\frac{2}{2})^2")  # what is slow only once counts for no pair
    os.write(verdicts, b"r")
    for line in sys.stdin:
        signal.alarm(_ORPHAN_S)
        one, other, symmetric = json.loads(line)
        both = all if symmetric == "and" else any
        equal = sound(one) if one == other else both(agree(*pair) for pair in ((one, other), (other, one)))
        os.write(verdicts, b"1" if equal else b"0")
        signal.alarm(0)


if __name__ == "__main__":
    main()
