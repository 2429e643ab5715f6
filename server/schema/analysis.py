"""The body of /v1/analysis/steps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from server.schema.chat import ConversationBody, Message
from server.schema.completions import Ids
from server.schema.fields import Body, Priority, RequestId, Salt, Text
from voting.steps import MOST_STEPS


class RegexSegment(Body):
    model_config = ConfigDict(extra="forbid", strict=True)

    regex: Annotated[Text, Field(min_length=1)]


class StepsBody(ConversationBody):
    """Either `prompt` or `messages`, either `reasoning` or `steps`."""

    model: Text
    prompt: Text | Ids | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None  # type: ignore[assignment]
    reasoning: Text | None = None
    steps: Annotated[list[Text], Field(max_length=MOST_STEPS)] | None = None
    answer: Annotated[Text, Field(min_length=1)]
    segment: Literal["blank_line", "line", "sentence"] | RegexSegment | None = None
    normalise: Literal["token", "sum"] | None = None
    kinds: list[Literal["progressive", "error_correction", "multi_method", "verification"]] | None = None
    priority: Priority | None = None
    cache_salt: Salt | None = None
    request_id: RequestId | None = None
    rid: RequestId | None = None
    user: Text | None = None
