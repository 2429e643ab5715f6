"""Prompts: from messages, strings or ids to token ids, and back to the text an echo shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import bad_request, refuse, too_long, unavailable
from server.schema.chat import ChatBody, ConversationBody, Message, ToolCall
from server.schema.common import GenerationBody
from server.schema.completions import CompletionBody
from server.state import Limits, ServedModel
from server.text.codec import TemplateError

RESERVED_TEMPLATE_NAMES = {
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens",
}  # fmt: skip


@dataclass(frozen=True)
class PromptInput:
    """One tokenized prompt."""

    ids: Sequence[int]
    param: str  # the field it came from
    text: str | None = None  # as sent, when it was sent as text and not shortened
    added: int = 0  # leading ids that the tokenizer put there


@dataclass(frozen=True)
class Layout:
    """A prompt as text."""

    text: str
    offsets: list[int]  # per token, the index of the character its first byte belongs to


def layout(model: ServedModel, prompt: PromptInput) -> Layout:
    """What `echo` shows and where each token of it begins."""
    detokenizer = model.tokenizer.detokenizer()
    offsets, parts, length = [], [], 0
    for at, token in enumerate(prompt.ids):
        if at < prompt.added:
            offsets.append(0)
            continue
        offsets.append(length + detokenizer.lead(token))
        parts.append(detokenizer.feed(token))
        length += len(parts[-1])
    parts.append(detokenizer.finish())
    return Layout("".join(parts) if prompt.text is None else prompt.text, offsets)


async def chat_prompt(
    model: ServedModel, body: ConversationBody, limits: Limits, room: int, cut: int | None
) -> PromptInput:
    """The prompt of a conversation. `room` is the longest that can be served, `cut` its wanted length."""
    text = render(model, body, limits)
    return await text_prompt(model, text, "messages", bool(body.add_special_tokens), room, cut)


async def completion_prompts(
    model: ServedModel, body: CompletionBody, room: int, cut: int | None
) -> list[PromptInput]:
    """All prompts of a completion request, in order."""
    given = body.prompt
    special = body.add_special_tokens is not False
    if isinstance(given, str):
        return [await text_prompt(model, given, "prompt", special, room, cut)]
    if isinstance(given[0], int):
        return [_id_prompt(model, given, "prompt", cut)]  # type: ignore[arg-type]
    prompts = []
    for at, one in enumerate(given):
        param = f"prompt[{at}]"
        if isinstance(one, str):
            prompts.append(await text_prompt(model, one, param, special, room, cut))
        else:
            prompts.append(_id_prompt(model, one, param, cut))  # type: ignore[arg-type]
    return prompts


async def text_prompt(
    model: ServedModel, text: str, param: str, special: bool, room: int, cut: int | None
) -> PromptInput:
    codec = model.tokenizer
    if cut is None and codec.surely_longer_than(text, room):
        limit = model.runner.max_model_len
        raise too_long(f"'{param}' has {len(text)} characters; the context has {limit} tokens", param)
    encoded = await codec.encode(text, special)
    if not encoded.ids:
        refuse(f"'{param}' is empty", param)
    if cut is not None and len(encoded.ids) > cut:
        return PromptInput(encoded.ids[-cut:], param)
    return PromptInput(encoded.ids, param, text, encoded.added)


def _id_prompt(model: ServedModel, ids: list[int], param: str, cut: int | None) -> PromptInput:
    if max(ids) >= model.runner.vocab_size:
        at = next(at for at, token in enumerate(ids) if token >= model.runner.vocab_size)
        path = f"{param}[{at}]"
        refuse(f"'{path}' is outside the vocabulary of {model.runner.vocab_size}", path)
    return PromptInput(ids if cut is None else ids[-cut:], param)


def truncation(body: GenerationBody, model: ServedModel, max_tokens: int | None) -> int | None:
    """The prompt length `truncate_prompt_tokens` asks for; -1 means as much as fits."""
    wanted = body.truncate_prompt_tokens
    if wanted is None:
        return None
    if wanted == 0:
        refuse("'truncate_prompt_tokens' must be at least 1, or -1", "truncate_prompt_tokens")
    return max(1, model.runner.max_model_len - (max_tokens or 1)) if wanted == -1 else wanted


def render(model: ServedModel, body: ConversationBody, limits: Limits) -> str:
    """The text of a conversation."""
    options = dict(body.chat_template_kwargs or {})
    if reserved := sorted(RESERVED_TEMPLATE_NAMES & options.keys()):
        path = f"chat_template_kwargs.{reserved[0]}"
        refuse(f"'{path}' cannot be set here", path)
    if isinstance(body, ChatBody) and body.reasoning_effort is not None:
        options["reasoning_effort"] = body.reasoning_effort
    if body.chat_template is not None:
        if not limits.allow_chat_template:
            raise bad_request("'chat_template' is not allowed by this server", "chat_template")
        options["chat_template"] = body.chat_template
    if body.tools is not None:
        if not body.tools:
            refuse("'tools' must not be empty", "tools")
        raise unavailable("tools", "tool calling is")
    continued = bool(body.continue_final_message)
    if continued and body.add_generation_prompt:
        refuse("'continue_final_message' excludes 'add_generation_prompt'", "continue_final_message")
    if continued and not (body.messages[-1].text() or "").strip():
        refuse("'continue_final_message' needs text in the last message", "continue_final_message")
    prompt = not continued if body.add_generation_prompt is None else body.add_generation_prompt
    try:
        return model.tokenizer.render_chat(
            [_template_message(one) for one in body.messages],
            add_generation_prompt=prompt,
            continue_final_message=continued,
            options=options,
        )
    except TemplateError as error:
        raise bad_request(str(error), "messages") from None


def _template_message(message: Message) -> dict[str, Any]:
    """A message as chat templates expect it: text in one string, arguments of calls as objects."""
    out: dict[str, Any] = {"role": message.role, "content": message.text()}
    for name in ("name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            out[name] = value
    if reasoning := message.reasoning or message.reasoning_content:
        out["reasoning_content"] = reasoning
    if message.tool_calls:
        out["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    return out


def _template_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": _arguments(call.function.arguments)}
    return {"type": "function", "function": function} | ({} if call.id is None else {"id": call.id})


def _arguments(given: str | dict[str, Any] | None) -> Any:
    if not isinstance(given, str):
        return given or {}
    try:
        parsed = json.loads(given)
    except (ValueError, RecursionError):
        return given
    return parsed if isinstance(parsed, dict) else given
