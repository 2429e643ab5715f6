"""What a step of a reasoning is for, as LIMOPro tells steps apart (arXiv 2505.19187); voting.md section 16.

There a model says it. These rules go by what English texts say when they turn back or look again: cheap, and blind to
everything else.
"""

from __future__ import annotations

import re

PROGRESSIVE = "progressive"  # leads on; the other kinds are functional
_PHRASES = {
    "error_correction": (
        "mistake", "mistaken", "oops", "incorrect", "is wrong", "was wrong", "that's wrong", "not right",
        "isn't right", "wasn't right", "not correct", "isn't correct", "wait no", "no wait", "correction",
        "i misread", "i miscounted", "i miscalculated", "i overlooked", "i forgot", "let me fix", "let me correct",
        "let me redo", "should have been",
    ),
    "multi_method": (
        "alternatively", "another way", "another method", "another approach", "a different way", "a different method",
        "a different approach", "other method", "other approach", "second method", "second approach",
    ),
    "verification": (
        "check", "checks", "checking", "double-check", "double check", "verify", "verifies", "verifying",
        "verification", "confirm", "confirms", "confirming", "to be sure", "make sure", "plug back", "plugging back",
        "substitute back", "substituting back", "does this make sense", "does that make sense",
    ),
}  # fmt: skip
KINDS = (PROGRESSIVE, *_PHRASES)
_PATTERNS = {
    kind: re.compile(rf"\b(?:{'|'.join(map(re.escape, phrases))})\b", re.IGNORECASE)
    for kind, phrases in _PHRASES.items()
}


def kind_of(step: str) -> str:
    """One of KINDS: the first of the functional ones, in their order, of which the step has a phrase."""
    text = _plain(step)
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(text)), PROGRESSIVE)


def _plain(step: str) -> str:
    """With one kind of apostrophe, and single spaces in place of commas and white space."""
    return " ".join(step.replace("’", "'").replace(",", " ").split())
