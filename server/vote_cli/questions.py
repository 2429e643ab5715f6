"""What `drafthouse vote run` asks: a problem per line, {"id"?, "prompt" or "messages", "gold"? or "answer"?}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samplers.contract import SamplerError
from voting.samples_file import check_fields, read_lines, spelled

GAP = "\n\n"
_FIELDS = ("id", "prompt", "messages", "gold", "answer")


@dataclass(frozen=True)
class Question:
    """A problem that has no samples yet."""

    id: str
    asked: Mapping[str, Any]  # the field of a request: `messages` on chat, else `prompt`
    prompt: str  # the text of that
    gold: str | None  # the right answer


def read_questions(path: Path, endpoint: str, instruction: str) -> list[Question]:
    """At least one; `instruction` follows every prompt. Raises SamplesFileError, naming line and field, OSError."""
    return read_lines(path, lambda record, number: _question(record, str(number), endpoint, instruction))


def _question(record: Mapping[str, Any], default_id: str, endpoint: str, instruction: str) -> Question:
    check_fields(record, _FIELDS)
    given = {name: record[name] for name in _FIELDS if record.get(name) is not None}
    name = spelled(given.get("id", default_id), "id")
    right = next((field for field in ("gold", "answer") if field in given), None)
    gold = None if right is None else spelled(given[right], right)
    if {"gold", "answer"} <= given.keys():
        raise SamplerError("'gold' and 'answer' are two names of one field", "answer")
    if ("prompt" in given) == ("messages" in given):
        raise SamplerError("a problem has either a 'prompt' or 'messages'", "prompt")
    if "messages" in given:
        if endpoint != "chat":
            raise SamplerError("'messages' need --endpoint chat", "messages")
        messages = _messages(given["messages"])
    else:
        prompt = given["prompt"]
        if not isinstance(prompt, str) or not prompt:
            raise SamplerError("'prompt' must be a string that is not empty", "prompt")
        if endpoint != "chat":
            text = f"{prompt}{GAP}{instruction}{GAP}" if instruction else prompt
            return Question(name, {"prompt": text}, text, gold)
        messages = [{"role": "user", "content": prompt}]
    if instruction:
        messages = _instructed(messages, instruction)
    text = GAP.join(filter(None, map(_text, messages)))
    return Question(name, {"messages": messages}, text, gold)


def _messages(value: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) and "role" in one for one in value):
        raise SamplerError("'messages' must be a list of objects with a 'role', at least one", "messages")
    return value


def _instructed(messages: Sequence[Mapping[str, Any]], instruction: str) -> Sequence[Mapping[str, Any]]:
    """With the instruction behind what the user said last."""
    place = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=None)
    if place is None:
        raise SamplerError("an instruction is put behind a message of the user; there is none", "messages")
    content = messages[place].get("content")
    if isinstance(content, list):
        content = [*content, {"type": "text", "text": instruction}]
    else:
        content = GAP.join(filter(None, (content, instruction)))
    return [*messages[:place], {**messages[place], "content": content}, *messages[place + 1 :]]


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    return "\n".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
