"""Ragged steps (T11): plain, greedy, sampled, chains, trees, every rule and prompts side by side. Each request gets
what it gets alone, and the KV behind every token is that of a fresh pass, whatever was rolled back or moved.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.request import DecodeRequest
from samplers.chain import resolve
from tests.engine.speculating import (
    Answer,
    Speculating,
    ask,
    ask_all,
    looked_up,
    speculating,
    tiny_draft,
    tiny_executor,
)
from tests.engine.tiny_models import FAMILIES, VOCABULARY, tiny_model

LENGTH, CLOSE = 18, 1e-4
SIZES = (5, 21, 9, 14, 30, 2, 17)
GENERATOR = torch.Generator().manual_seed(3)
PROMPTS = [torch.randint(3, VOCABULARY, (count,), generator=GENERATOR).tolist() for count in 2 * SIZES]
REPEATING = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6]

MODEL = {"draft": "draft_model", "num_tokens": 3}
MATCHED: list[tuple[dict[str, Any], Any]] = [
    ({}, False),
    ({"temperature": 0}, MODEL),
    ({"temperature": 0, "presence_penalty": 0.5}, MODEL | {"num_drafts": 3}),
    ({"top_p": 0.9}, MODEL | {"verifier": "match"}),
    ({"draw": "gumbel"}, MODEL | {"num_drafts": 2}),
    ({"frequency_penalty": 0.5}, {"draft": "suffix", "num_tokens": 4, "suffix": {"offset": 2}}),
    ({}, {"draft": "prompt_lookup", "num_tokens": 5, "ngram": {"min": 1}}),
    ({"temperature": 0}, False),
]
RULED: list[tuple[dict[str, Any], Any]] = [
    ({}, MODEL | {"verifier": "block"}),
    ({"min_p": 0.1, "repetition_penalty": 1.2}, MODEL | {"verifier": "token", "num_tokens": 2}),
    ({}, MODEL | {"verifier": "traversal", "num_drafts": 3}),
    ({"typical_p": 0.8}, MODEL | {"verifier": "rrs", "num_drafts": 2, "sibling_law": "swor"}),
    ({"logit_bias": {"7": 2}}, MODEL | {"verifier": "kseq", "num_drafts": 3, "num_tokens": 2}),
    ({"presence_penalty": 0.4}, MODEL | {"verifier": "hu", "num_drafts": 3, "num_tokens": 1}),
]


def asked(running: Speculating, mixture: list[tuple[dict[str, Any], Any]]) -> list[DecodeRequest]:
    return [
        DecodeRequest(
            f"r{i}",
            tuple(REPEATING if i == 6 else PROMPTS[i]),
            resolve(fields, VOCABULARY),
            seed=40 + i,
            max_tokens=LENGTH,
            n=1 + i % 2,
            logprobs=1,
            speculation=None if way is False else running.spec(way, fields),
        )
        for i, (fields, way) in enumerate(mixture)
    ]


def engine_of(target: torch.nn.Module, max_rows: int = 256, max_seqs: int = 24) -> Any:
    executor = tiny_executor(target, max_seqs, max_rows=max_rows)
    draft = tiny_draft(tiny_model("llama", seed=0, num_hidden_layers=3), executor.loaded, max_seqs)
    return speculating(executor, [draft, *looked_up()], max_rows)


def tokens_of(answers: list[list[Answer]]) -> list[list[list[int]]]:
    return [[one.tokens for one in own] for own in answers]


@pytest.mark.parametrize("max_rows", [24, 256])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
async def test_each_request_gets_what_it_gets_alone(kind: str, max_rows: int) -> None:
    mixture = MATCHED + RULED if max_rows == 256 else MATCHED  # with few rows drafts are cut: a matter of the load
    async with engine_of(tiny_model(kind), max_rows) as running:
        requests = asked(running, mixture)
        alone = [await ask(running.engine, replace(one, cache_salt="alone")) for one in requests]
        running.steps.clear()
        first = asyncio.create_task(ask_all(running.engine, requests[::2]))
        while len(running.steps) < 3:  # prompts meet sequences in the middle of their output
            await asyncio.sleep(0)
        second = await ask_all(running.engine, requests[1::2])
        together = [one for pair in zip(await first, second, strict=True) for one in pair]
        assert tokens_of(together) == tokens_of(alone)
        plain = await ask_all(running.engine, [replace(one, speculation=None) for one in requests[: len(MATCHED)]])
        assert tokens_of(plain) == tokens_of(alone)[: len(MATCHED)]
        mixed = [step for step in running.steps if any(count > 1 for _, count, _, _ in step)]
        assert any(nodes for step in mixed for _, _, nodes, _ in step)


async def test_a_toggle_of_one_request_changes_no_other() -> None:
    async with engine_of(tiny_model("llama")) as running:
        requests = asked(running, MATCHED + RULED)
        with_it = await ask_all(running.engine, requests)
        for at in (1, 2, 8):
            toggled = [replace(one, cache_salt=f"{at}") for one in requests]  # a prompt that is known begins otherwise
            toggled[at] = replace(toggled[at], speculation=None)
            without = await ask_all(running.engine, toggled)
            del without[at]
            assert tokens_of(without) == [own for i, own in enumerate(tokens_of(with_it)) if i != at]


@torch.inference_mode()
def fresh(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    """[n, V] log-probabilities by the model's own eager attention."""
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().log_softmax(1)


@pytest.mark.parametrize("kind", sorted(FAMILIES))
async def test_every_token_is_scored_as_in_a_fresh_pass(kind: str) -> None:
    """Each row looks at KV that earlier steps have rolled back, moved and gone on with."""
    reference = tiny_model(kind)
    reference.set_attn_implementation("eager")
    async with engine_of(tiny_model(kind)) as running:
        requests = asked(running, MATCHED + RULED)
        answers = await ask_all(running.engine, requests)
        accepted = [one.finish.speculation for own in answers for one in own if one.finish is not None]
        assert sum(one.accepted for one in accepted if one is not None) > 20
        assert sum(one.drafted - one.accepted for one in accepted if one is not None) > 100
    for request, own in zip(requests, answers, strict=True):
        for answer in own:
            rows = fresh(reference, [*request.prompt_ids, *answer.tokens])[len(request.prompt_ids) - 1 : -1]
            expected = rows.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=CLOSE, rtol=0)
            for score, row in zip(answer.scores, rows, strict=True):
                assert score.top[0][1] == pytest.approx(float(row.max()), abs=CLOSE)


async def test_what_is_cached_is_what_was_said() -> None:
    """A next turn finds the pages of the last one's output, drafts that were taken among them, and nothing wrong."""
    async with engine_of(tiny_model("llama")) as running:
        for one in asked(running, MATCHED + RULED):
            said = (await ask(running.engine, one))[0].tokens
            turn = replace(one, id="turn", prompt_ids=(*one.prompt_ids, *said), n=1, speculation=None)
            found = await ask(running.engine, turn)
            salted = await ask(running.engine, replace(turn, id="salted", cache_salt=one.id))
            assert found[0].tokens == salted[0].tokens
        assert running.engine.stats().cached_prompt_tokens > 200
