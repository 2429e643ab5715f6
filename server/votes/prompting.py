"""What a vote does to prompts: some rules append an instruction, and chains put attempts behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from server.errors import refuse
from server.prompts import PromptInput, chat_prompt, completion_prompts
from server.schema.chat import ChatBody, Message
from server.schema.completions import CompletionBody
from server.state import Limits, ServedModel
from server.votes.problem import Problem
from server.votes.request import VoteRequest
from voting.chain import Chain

GAP = "\n\n"


def instructed_chat(body: ChatBody, vote: VoteRequest) -> ChatBody:
    """With the rule's instruction behind what the user said last. Raises a 400 where the user says nothing."""
    if not vote.rule.instruction:
        return body
    place = next((at for at in reversed(range(len(body.messages))) if body.messages[at].role == "user"), None)
    if place is None:
        refuse(f"'{vote.rule.name}' puts an instruction behind a message of the user; there is none", "messages")
    asked = body.messages[place]
    message = asked.model_copy(update={"content": (asked.text() or "") + GAP + vote.rule.instruction})
    return body.model_copy(update={"messages": [*body.messages[:place], message, *body.messages[place + 1 :]]})


def instructed_completion(body: CompletionBody, vote: VoteRequest) -> CompletionBody:
    """With the rule's instruction behind every prompt. Raises a 400 for prompts that are ids."""
    if not vote.rule.instruction:
        return body
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    texts = [f"{text}{GAP}{vote.rule.instruction}{GAP}" for text in prompts if isinstance(text, str)]
    if len(texts) < len(prompts):
        refuse(f"'{vote.rule.name}' puts an instruction behind the prompt, which must be text then", "prompt")
    return body.model_copy(update={"prompt": texts[0] if isinstance(body.prompt, str) else texts})


def chat_problem(model: ServedModel, body: ChatBody, limits: Limits) -> Problem:
    """`body` as it was sent."""

    async def follow(chain: Chain) -> PromptInput:
        turns = [Message(role=role, content=text) for role, text in chain.turns()]  # type: ignore[arg-type]
        longer = body.model_copy(update={"messages": [*body.messages, *turns]})
        return await chat_prompt(model, longer, limits, model.runner.max_model_len, None)

    return replace(conversation(body.messages), continued=bool(body.continue_final_message), follow=follow)


def conversation(messages: Sequence[Message]) -> Problem:
    said = [(message.role, message.text() or "") for message in messages]
    text = said[0][1] if len(said) == 1 else GAP.join(f"{role}: {content}" for role, content in said)
    return Problem(text, [message.model_dump(exclude_none=True) | {"content": message.text()} for message in messages])


def completion_problems(model: ServedModel, body: CompletionBody, prompts: Sequence[PromptInput]) -> list[Problem]:
    """One per prompt; of ids the text that they decode to."""
    return [_completion_problem(model, body, prompt) for prompt in prompts]


def _completion_problem(model: ServedModel, body: CompletionBody, prompt: PromptInput) -> Problem:
    text = model.tokenizer.decode(list(prompt.ids)) if prompt.text is None else prompt.text

    async def follow(chain: Chain) -> PromptInput:
        asked: dict[str, Any] = {"prompt": chain.prompt(text)}
        (longer,) = await completion_prompts(model, body.model_copy(update=asked), model.runner.max_model_len, None)
        return longer

    return Problem(text, follow=follow)
