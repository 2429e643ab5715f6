"""The bodies of /v1/votes: a chat, a completion or samples that have been drawn; and a verdict on a vote."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, RootModel, model_validator

from server.schema.chat import ChatBody, Message
from server.schema.completions import CompletionBody
from server.schema.fields import Body, Count, Flag, Int, Int64, Priority, RequestId, Salt, Text

MOST_TESTS = 256


class _Closed(Body):
    """Knows all its fields."""

    model_config = ConfigDict(extra="forbid")


class CodeTestBody(_Closed):
    """What a program is given, and what it has to print."""

    input: Text
    expected: Text


class Code(_Closed):
    """The answers are programs."""

    tests: Annotated[list[CodeTestBody], Field(min_length=1, max_length=MOST_TESTS)]
    passes: list[list[Flag]] | None = None  # [samples][tests]
    max_rounds: Count | None = None


class _Voting(Body):
    """`voting` may be left out."""

    voting: Annotated[dict[Text, Any], BeforeValidator(lambda value: {} if value is None else value)] = Field(
        default_factory=dict
    )
    code: Code | None = None


class _Drawn(_Voting):
    """Answers that are programs are looked for in code blocks, unless the request says where else."""

    @model_validator(mode="after")
    def _extracts_code(self) -> Self:
        if self.code is not None and self.voting.get("extract") is None:
            self.voting = {**self.voting, "extract": "code"}
        return self


class ChatVoteBody(_Drawn, ChatBody):  # type: ignore[misc]
    pass


class CompletionVoteBody(_Drawn, CompletionBody):  # type: ignore[misc]
    pass


class SamplesVoteBody(_Voting):
    """Nothing is drawn; `prompt` or `messages` is what the samples answer."""

    samples_data: Annotated[list[dict[Text, Any]], Field(min_length=1)]
    model: Text | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    seed: Int64 | None = None
    priority: Priority | None = None
    cache_salt: Salt | None = None
    request_id: RequestId | None = None
    rid: RequestId | None = None
    user: Text | None = None


class VoteBody(RootModel[ChatVoteBody | CompletionVoteBody | SamplesVoteBody]):
    """Any of them, for the OpenAPI document."""


class VerdictBody(_Closed):
    cluster_id: Int | None = None
    test_id: Int | None = None
    verdict: Literal["accept", "reject", "correct"]
    value: Text | None = None
    passes: list[Flag] | None = None
    user: Text | None = None
    request_id: RequestId | None = None
    rid: RequestId | None = None
