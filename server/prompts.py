"""Prompts: from messages, strings or ids to token ids, and back to the text an echo shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import bad_request, check_ids, refuse, too_long, unavailable
from server.offload import offload
from server.schema.analysis import StepsBody
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


MESSAGE_SIZE = 40  # characters whose tokenization costs as much as rendering one message


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


def layout(model: ServedModel, prompt: PromptInput, continued: bool) -> Layout:
    """What `echo` shows and where each token of it begins. `continued`: an incomplete character at the end is left to
    the text that follows."""
    detokenizer = model.tokenizer.detokenizer()
    offsets, parts, length = [], [], 0
    for at, token in enumerate(prompt.ids):
        if at < prompt.added:
            offsets.append(0)
            continue
        offsets.append(length + detokenizer.lead(token))
        parts.append(detokenizer.feed(token))
        length += len(parts[-1])
    if not continued:
        parts.append(detokenizer.finish())
    decoded = "".join(parts)
    if before := model.tokenizer.leading_spaces(decoded):
        offsets, decoded = [max(0, offset - before) for offset in offsets], decoded[before:]
    return Layout(decoded if prompt.text is None else prompt.text, offsets)


async def chat_prompt(
    model: ServedModel, body: ConversationBody, limits: Limits, room: int, cut: int | None
) -> PromptInput:
    """The prompt of a conversation. `room` is the longest that can be served, `cut` its wanted length."""
    text = await render(model, body, limits)
    (prompt,) = await _text_prompts(model, {"messages": text}, bool(body.add_special_tokens), room, cut)
    return prompt


async def completion_prompts(model: ServedModel, body: CompletionBody, room: int, cut: int | None) -> list[PromptInput]:
    """All prompts of a completion request, in order."""
    special = body.add_special_tokens is not False
    match body.prompt:
        case str(text):
            return await _text_prompts(model, {"prompt": text}, special, room, cut)
        case [str(), *_] as texts:
            named = {f"prompt[{at}]": text for at, text in enumerate(texts)}
            return await _text_prompts(model, named, special, room, cut)
        case [int(), *_] as ids:
            return [_id_prompt(model, ids, "prompt", cut)]
        case lists:
            return [_id_prompt(model, ids, f"prompt[{at}]", cut) for at, ids in enumerate(lists)]


async def analysed_prompt(model: ServedModel, body: StepsBody, limits: Limits, room: int) -> PromptInput:
    """The prompt of an analysis: text, ids or a conversation. `room` is the longest that can be served."""
    match body.prompt:
        case None:
            return await chat_prompt(model, body, limits, room, None)
        case str(text):
            (prompt,) = await _text_prompts(model, {"prompt": text}, body.add_special_tokens is not False, room, None)
            return prompt
        case ids:
            return _id_prompt(model, ids, "prompt", None)


async def _text_prompts(
    model: ServedModel, texts: dict[str, str], special: bool, room: int, cut: int | None
) -> list[PromptInput]:
    """Texts by the name of their field."""
    codec = model.tokenizer
    for param, text in texts.items():
        if cut is None and codec.surely_longer_than(text, room):
            limit = model.runner.max_model_len
            raise too_long(f"'{param}' has {len(text)} characters; the context has {limit} tokens", param)
    encoded = await codec.encode_all(list(texts.values()), special)
    prompts = []
    for (param, text), one in zip(texts.items(), encoded, strict=True):
        if not one.ids:
            refuse(f"'{param}' is empty", param)
        if cut is not None and len(one.ids) > cut:
            prompts.append(PromptInput(one.ids[-cut:], param))
        else:
            prompts.append(PromptInput(one.ids, param, text, one.added))
    return prompts


def _id_prompt(model: ServedModel, ids: list[int], param: str, cut: int | None) -> PromptInput:
    check_ids(ids, param, model.runner.vocab_size)
    return PromptInput(ids if cut is None else ids[-cut:], param)


def truncation(body: GenerationBody, model: ServedModel, max_tokens: int | None) -> int | None:
    """The prompt length `truncate_prompt_tokens` asks for; -1 means as much as fits."""
    wanted = body.truncate_prompt_tokens
    if wanted is None:
        return None
    return max(1, model.runner.max_model_len - (max_tokens or 1)) if wanted == -1 else wanted


async def render(model: ServedModel, body: ConversationBody, limits: Limits) -> str:
    """The text of a conversation."""
    return await offload(MESSAGE_SIZE * len(body.messages), _render, model, body, limits)


def _render(model: ServedModel, body: ConversationBody, limits: Limits) -> str:
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
