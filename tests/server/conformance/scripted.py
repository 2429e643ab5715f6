"""A runner that says what a test tells it to, for votes whose outcome is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine.request import DecodeRequest
from tests.server.live import Live

Texts = Sequence[str] | Callable[[int], str]


def index_of(request: DecodeRequest, choice: int) -> int:
    """Which sample of its vote a choice is."""
    return request.first_choice + choice


def say(live: Live, texts: Texts, judge: str = "", **by_prompt: Texts) -> None:
    """Sample i says `texts[i]`, where its prompt holds a name in `by_prompt` what stands there. A judge
    says `judge`."""

    def script(request: DecodeRequest, choice: int) -> list[int]:
        if request.id.endswith("-judge"):
            return live.codec.encode_plain(judge)
        prompt = live.codec.decode(list(request.prompt_ids))
        said: Any = next((said for name, said in by_prompt.items() if name in prompt), texts)
        index = index_of(request, choice)
        return live.codec.encode_plain(said(index) if callable(said) else said[index])

    live.runner.behaviour.script = script


def answers(*given: object) -> list[str]:
    """Texts with these answers; None: with none."""
    return ["nothing" if answer is None else f"so #### {answer}" for answer in given]


def length(live: Live, text: str) -> int:
    """Tokens of a text and its end."""
    return len(live.codec.encode_plain(text)) + 1
