"""Bodies of /tokenize and /detokenize, in both forms clients send."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.schema.chat import ConversationBody, Message
from server.schema.fields import Body, Flag, Text, TokenId


class TokenizeBody(ConversationBody):
    """Either `prompt` or `messages`."""

    model: Text | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None  # type: ignore[assignment]
    return_token_strs: Flag | None = None


class DetokenizeBody(Body):
    model: Text | None = None
    tokens: list[TokenId]
