"""One choice, or a branch of a program, as the logits processor knows it, and its form on the way there: vLLM's
`extra_args`.

The way is msgpack, so tuples arrive as lists; whoever owns a field knows how to read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.request import DecodeRequest
from engine.runners.vllm.row_block import Place
from engine.scores import ScoreQuestion
from samplers.chain import Chain, Item
from samplers.programs.branch import Branch
from samplers.registry import STAGES

FIELD = "drafthouse"  # of `extra_args`
SEPARATOR = "/"  # between a request's id and the number of the choice


def key_of(request_id: str, choice: int) -> str:
    """The name of a choice in vLLM."""
    return f"{request_id}{SEPARATOR}{choice}"


@dataclass(frozen=True)
class Choice:
    """What one choice is sampled with, or the row behind a branch is shaped with."""

    key: str  # unique among those that run
    chain: Chain
    seed: int  # signed 64-bit
    number: int  # its 32-bit choice word
    n: int  # choices of its request
    begun: tuple[int, ...]  # the last tokens of the prompt, which are output to the samplers
    ending_ids: frozenset[int]
    min_tokens: int
    place: Place | None = None  # of a branch: where its row is to be written
    filtered: bool = False  # vLLM draws, from the row that the stages leave
    question: ScoreQuestion | None = None  # about every token, beyond what vLLM can say
    trace: int = 0  # candidates that a trace of every token's row lists; 0: no trace

    @classmethod
    def of(cls, request: DecodeRequest, choice: int, filtered: bool = False) -> Choice:
        """Of a request without a program."""
        return cls(
            key_of(request.id, choice),
            request.chain,
            request.seed,
            request.first_choice + choice,
            request.n,
            request.begun,
            request.eos_token_ids | request.stop_token_ids,
            request.min_tokens,
            filtered=filtered,
            question=ScoreQuestion.of(request) if request.processed_logprobs or request.logprob_token_ids else None,
            trace=request.trace or 0,
        )

    @classmethod
    def behind(cls, request: DecodeRequest, branch: Branch, chain: Chain, key: str, place: Place) -> Choice:
        """Of the row behind a branch. chain: of the request, or what is left of it where a program chooses itself."""
        return cls(
            key,
            chain,
            branch.stream.key,
            branch.stream.choice,
            request.n,
            tuple(branch.ids),
            request.eos_token_ids | request.stop_token_ids,
            request.min_tokens,
            place,
        )

    def pack(self) -> dict[str, Any]:
        """As `extra_args`: plain values, integers of 64 bits."""
        chain = self.chain
        return {
            FIELD: {
                "key": self.key,
                "stages": [[item.name, dict(item.values)] for item in chain.stages],
                "draw": [chain.draw.name, dict(chain.draw.values)],
                "greedy": chain.greedy,
                "given_order": chain.given_order,
                "seed": self.seed,
                "number": self.number,
                "n": self.n,
                "begun": list(self.begun),
                "ending_ids": sorted(self.ending_ids),
                "min_tokens": self.min_tokens,
                "place": self.place,
                "filtered": self.filtered,
                "question": self.question,
                "trace": self.trace,
            }
        }

    @classmethod
    def unpack(cls, extra_args: Mapping[str, Any] | None, vocab_size: int) -> Choice | None:
        """The choice that was packed. None: vLLM draws this one. Raises SamplerError for an unknown sampler."""
        if extra_args is None or FIELD not in extra_args:
            return None
        packed = extra_args[FIELD]
        question = packed["question"]
        chain = Chain(
            tuple(_stage(name, values, vocab_size) for name, values in packed["stages"]),
            Item(*packed["draw"]),
            packed["greedy"],
            packed["given_order"],
        )
        return cls(
            packed["key"],
            chain,
            packed["seed"],
            packed["number"],
            packed["n"],
            tuple(packed["begun"]),
            frozenset(packed["ending_ids"]),
            packed["min_tokens"],
            None if packed["place"] is None else Place(*packed["place"]),
            packed["filtered"],
            None if question is None else ScoreQuestion(question[0], question[1], tuple(question[2])),
            packed["trace"],
        )


def _stage(name: str, values: Mapping[str, Any], vocab_size: int) -> Item:
    stage = STAGES.get(name)
    said = {field: values[field] for field in stage.structured if values[field] is not None}
    read = {field: stage.parse(field, value, field, vocab_size) for field, value in said.items()}
    return Item(name, {**values, **read})
