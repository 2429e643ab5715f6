"""What servers answer, as samples: texts, tokens and log-probabilities in the shapes in which servers give them.

Log-probabilities are taken as raw, as Drafthouse, vLLM and llama.cpp list them unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.answers.logprobs import FLOOR
from server.vote_cli.remote import QuestionFailed
from voting.contract import Sample
from voting.token_statistics import confidences, entropies


@dataclass(frozen=True)
class Drawn:
    """One choice."""

    sample: Sample  # without an answer
    counted: bool  # mean_logprob is over all generated tokens, an ending one included, as far as can be told


@dataclass(frozen=True)
class Answer:
    """The choices of one request, in order."""

    choices: tuple[Drawn, ...]
    complete: bool  # a program has made them: there are no others


@dataclass(frozen=True)
class _Listed:
    """The tokens that a server lists."""

    logprobs: tuple[float, ...]
    top: tuple[Sequence[float], ...]  # of each token's most probable alternatives, as many as there are


def read_answer(body: Mapping[str, Any], first: int, top: int) -> Answer:
    """The choices as samples from index `first` on. top: alternatives per token that statistics are made of, 0: none.
    Raises QuestionFailed for what no such server answers."""
    try:
        choices = sorted(body["choices"], key=lambda choice: choice.get("index", 0))
        listed = [_listed(choice.get("logprobs")) for choice in choices]
        usage = (body.get("usage") or {}).get("completion_tokens")
        whole = usage is not None and usage == sum(0 if one is None else len(one.logprobs) for one in listed)
        alone = usage if len(choices) == 1 else None
        drawn = [
            _drawn(choice, one, first + place, top, whole, alone)
            for place, (choice, one) in enumerate(zip(choices, listed, strict=True))
        ]
        program = "program" in (body.get("drafthouse") or {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise QuestionFailed(f"the server's answer is not as expected: {type(error).__name__} {error}") from None
    return Answer(tuple(drawn), program)


def _drawn(
    choice: Mapping[str, Any], listed: _Listed | None, index: int, top: int, whole: bool, tokens: int | None
) -> Drawn:
    """tokens: generated for this choice, where the server says so otherwise."""
    ids = choice.get("token_ids")
    mean, counted = _mean_logprob(choice, ids, listed, whole)
    finite = mean is None or math.isfinite(mean)
    table = _table(listed, top)
    details = choice.get("drafthouse") or {}
    text = _text(choice)
    count = len(ids) if ids is not None else len(listed.logprobs) if listed else tokens or 0
    reasons = {"failed": choice.get("failure"), "bad_logprob": not finite, "no_tokens": not text and not count}
    sample = Sample(
        index,
        text,
        token_ids=None if ids is None else tuple(map(int, ids)),
        n_tokens=count,
        mean_logprob=mean if finite else None,
        finish_reason=choice.get("finish_reason") or "stop",
        abstain_reason=next((reason for reason, holds in reasons.items() if holds), None),
        weight=float(details.get("tree_weight", 1.0)),
        entropies=None if table is None else tuple(entropies(table).tolist()),
        confidences=None if table is None else tuple(confidences(table).tolist()),
    )
    return Drawn(sample, counted)


def _mean_logprob(
    choice: Mapping[str, Any], ids: Sequence[int] | None, listed: _Listed | None, whole: bool
) -> tuple[float | None, bool]:
    """Per generated token, and whether all of them count. -inf: it is no finite number."""
    total = choice.get("cumulative_logprob")
    if total is not None and ids:
        return (-math.inf if total == FLOOR else min(float(total), 0.0) / len(ids)), True
    if listed is None or not listed.logprobs:
        return None, True
    mean = math.fsum(listed.logprobs) / len(listed.logprobs)
    return min(mean, 0.0), whole or (ids is not None and len(ids) == len(listed.logprobs))


def _table(listed: _Listed | None, top: int) -> list[Sequence[float]] | None:
    """[T, top], the most probable first. None: not every token has that many."""
    if not top or listed is None or not listed.logprobs or any(len(row) < top for row in listed.top):
        return None
    return [sorted(row, reverse=True)[:top] for row in listed.top]


def _text(choice: Mapping[str, Any]) -> str:
    text = choice["message"].get("content") if "message" in choice else choice["text"]
    if text is not None and not isinstance(text, str):
        raise TypeError("text is no string")
    return text or ""


def _listed(logprobs: Mapping[str, Any] | None) -> _Listed | None:
    """Either shape of OpenAI's: that of chat, which some use for completions as well, and four parallel lists."""
    if not logprobs:
        return None
    if "content" in logprobs:
        entries = logprobs["content"] or []
        return _Listed(
            tuple(_read(entry["logprob"]) for entry in entries),
            tuple([_read(one["logprob"]) for one in entry.get("top_logprobs") or ()] for entry in entries),
        )
    values = tuple(map(_read, logprobs["token_logprobs"]))
    rows = logprobs.get("top_logprobs") or [None] * len(values)
    return _Listed(values, tuple([_read(one) for one in (row or {}).values()] for row in rows))


def _read(value: Any) -> float:
    number = float(value)
    return number if number > FLOOR else -math.inf  # NaN compares false as well
