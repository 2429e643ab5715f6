"""The body of a text completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, WrapValidator
from pydantic_core import PydanticCustomError

from server.schema.common import GenerationBody
from server.schema.fields import WHOLE, Flag, Text, TokenId


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and set(map(type, value)) == {int} and min(value) >= 0


def _prompt(value: Any, check: Callable[[Any], Any]) -> Any:
    """Valid prompts pass quickly, however many ids they hold; the rest is taken apart for its error message."""
    if isinstance(value, str) or _is_ids(value):
        return value
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("prompt", "must be a string, a list of strings, token ids, or lists of token ids")
    if set(map(type, value)) == {str} or all(map(_is_ids, value)):
        return value
    return check(value)


Ids = Annotated[list[TokenId], Field(min_length=1)]
Prompt = Annotated[
    Text | Annotated[list[Text], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)],
    WrapValidator(_prompt),
]


class CompletionBody(GenerationBody):
    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0), WHOLE] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None
    echo: Flag | None = None
    best_of: Annotated[int, Field(ge=1, le=128), WHOLE] | None = None
    suffix: Text | None = None
