"""Asks the served model to judge samples: one greedy answer to a question that a voting rule has written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.request import DecodeRequest
from samplers.chain import resolve
from server.errors import too_long
from server.generate import Tokens
from server.state import ServedModel
from server.whole_output import whole_output
from voting.judge import MAX_TOKENS


@dataclass(frozen=True)
class Reply:
    text: str
    tokens: Tokens  # what the question and its answer had


class Origin(Protocol):
    """The request whose samples are judged."""

    @property
    def id(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def cache_salt(self) -> str: ...


async def consult(model: ServedModel, question: str, origin: Origin) -> Reply:
    """Raises a 400 where the question is longer than the context."""
    codec, runner = model.tokenizer, model.runner
    ids = await _encoded(model, question)
    room = runner.max_model_len - len(ids)
    if room < 1:
        raise too_long(
            f"the judge would have to read {len(ids)} tokens, and the context has {runner.max_model_len}",
            "voting.samples",
        )
    asked = DecodeRequest(
        id=f"{origin.id}-judge",
        prompt_ids=tuple(ids),
        chain=resolve({"temperature": 0.0}, runner.vocab_size, runner.facts),
        seed=origin.seed,
        max_tokens=min(MAX_TOKENS, room),
        eos_token_ids=model.eos_token_ids,
        priority=origin.priority,
        cache_salt=origin.cache_salt,
    )
    said = (await whole_output(runner, asked)).deltas[0].token_ids
    shown = [token for token in said if token not in codec.special_ids]
    return Reply(codec.decode(shown), Tokens(len(ids), len(said)))


async def _encoded(model: ServedModel, question: str) -> list[int]:
    """As a conversation where the model has a template for one."""
    codec = model.tokenizer
    if codec.chat_template is not None:
        text = codec.render_chat(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            continue_final_message=False,
            options={},
        )
        (encoded,) = await codec.encode_all([text], False)
    else:
        (encoded,) = await codec.encode_all([question], True)
    return list(encoded.ids)
