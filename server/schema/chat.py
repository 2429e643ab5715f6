"""The body of a chat completion."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from server.schema.common import GenerationBody
from server.schema.fields import WHOLE, Body, Count, Flag, Text


class TextPart(Body):
    type: Literal["text"]
    text: Text


class CalledFunction(Body):
    name: Text
    arguments: Text | dict[Text, Any] | None = None


class ToolCall(Body):
    id: Text | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: Text | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise PydanticCustomError("content", "needs 'content'")
        return self

    def text(self) -> str | None:
        """The content as one string."""
        if self.content is None or isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ConversationBody(Body):
    """What turns messages into a prompt; shared with /tokenize."""

    messages: Annotated[list[Message], Field(min_length=1)]
    add_generation_prompt: Flag | None = None
    continue_final_message: Flag | None = None
    add_special_tokens: Flag | None = None
    chat_template: Text | None = None
    chat_template_kwargs: dict[Text, Any] | None = None
    tools: list[dict[Text, Any]] | None = None


class ChatBody(ConversationBody, GenerationBody):
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: Flag | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    tool_choice: Text | dict[Text, Any] | None = None
    parallel_tool_calls: Flag | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    modalities: list[Text] | None = None
    echo: Flag | None = None
    include_reasoning: Flag | None = None
    separate_reasoning: Flag | None = None
