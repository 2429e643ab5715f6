"""Speculation on and off through HTTP on the embedded pair: at temperature 0 the same tokens over 200 prompts, at
temperature 1 the same law, by chi-square of 20,000 draws against enumeration.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from models.corpus import source_text
from models.embedded import DRAFT, TARGET, locate
from models.problems import problems
from samplers.chain import resolve
from samplers.stack import SamplerStack
from samplers.testing.draw_checks import LEAST, chi_square
from server.config import ServeConfig
from server.launch import build_state
from server.text.codec import TextCodec
from tests.server.conformance.helpers import post_chat, post_completion
from tests.server.live import Live, start

pytestmark = pytest.mark.slow
AT_ONCE = 8


@pytest.fixture(scope="module")
def pair() -> Iterator[Live]:
    live = start(build_state(ServeConfig(max_model_len=512, draft_model=DRAFT, threads=1)))
    yield live
    live.stop()


@pytest.fixture
def raw(pair: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=pair.url, timeout=120) as client:
        yield client


def at_once(call: Any, items: list[Any]) -> list[Any]:
    """Several requests share steps all the time."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(call, items))


# ---- temperature 0

WAYS: list[Any] = [
    "auto",
    {"draft": "draft_model", "num_tokens": 4},
    {"draft": "draft_model", "num_tokens": 3, "verifier": "block"},
    {"draft": "draft_model", "num_tokens": 3, "num_drafts": 3},
    {"draft": "draft_model", "tree": {"shape": "dynamic", "top_k": 3, "max_nodes": 12}, "num_tokens": 4},
    {"draft": "prompt_lookup", "num_tokens": 6},
    {"draft": "suffix", "num_tokens": 5, "num_drafts": 2, "tree": {"max_nodes": 12}},
]


def prompts() -> list[dict[str, Any]]:
    """A hundred stretches of source code, a hundred word problems."""
    stretches = (text[at : at + 160] for text in source_text(True) for at in range(0, 6000, 800) if at < len(text))
    code = list(itertools.islice(stretches, 100))
    questions = [problem.question for problem in itertools.islice(problems(77, True), 100)]
    asked: list[dict[str, Any]] = [{"prompt": text} for text in code]
    return asked + [{"messages": [{"role": "user", "content": question}]} for question in questions]


def text_of(raw: httpx.Client, fields: dict[str, Any]) -> Any:
    answer = (post_chat if "messages" in fields else post_completion)(raw, temperature=0, **fields)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    text = choice["message"]["content"] if "messages" in fields else choice["text"]
    return text, choice["token_ids"], choice["finish_reason"], choice["stop_reason"]


def test_200_prompts_at_temperature_0(raw: httpx.Client) -> None:
    extra: list[dict[str, Any]] = [{}, {"stop": ["n t", "= "]}, {"frequency_penalty": 0.4}, {"max_tokens": 11}]
    asked = [
        {"max_tokens": 32, "return_token_ids": True} | one | extra[i // 7 % len(extra)]
        for i, one in enumerate(prompts())
    ]
    assert len(asked) == 200
    plain = at_once(lambda fields: text_of(raw, fields | {"spec_decode": False}), asked)
    ways = [one | {"spec_decode": WAYS[i % len(WAYS)]} for i, one in enumerate(asked)]
    drafted = at_once(lambda fields: text_of(raw, fields), ways)
    assert [i for i in range(200) if plain[i] != drafted[i]] == []
    assert sum(reason == "stop" for *_, reason, _ in plain) > 20  # many end inside drafts


# ---- temperature 1

PROMPT = "Tom has 3"
FIELDS: dict[str, Any] = {
    "temperature": 1,
    "top_k": 3,
    "typical_p": 0.97,
    "min_p": 0.03,
    "frequency_penalty": 0.7,
    "repetition_penalty": 1.2,
    "logit_bias": {"10": 1.0, "300": -1.0},
}
CHOICES, COMPARED = 100, 3


def law() -> dict[tuple[int, ...], float]:
    """Of the first tokens, by the model's own forward pass and the request's stages, one token after the other."""
    codec = TextCodec.load(locate(TARGET))
    model = AutoModelForCausalLM.from_pretrained(locate(TARGET)).eval()
    prompt = codec.fast.encode(PROMPT).ids
    size, slots = len(codec.pieces()), np.array([0])
    chain = resolve(FIELDS, size)

    @cache
    @torch.inference_mode()
    def row(tokens: tuple[int, ...]) -> torch.Tensor:
        logits = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0, len(prompt) - 1 :, :size].float()
        stack = SamplerStack(1, size, torch.device("cpu"))
        stack.admit(0, chain, seed=0, choice=0, prompt_ids=prompt)
        for position in range(len(tokens) + 1):
            shaped, failures = stack.shape(logits[[position]], slots, np.array([position]))
            assert not failures
            if position < len(tokens):
                stack.accept(slots, torch.tensor(tokens[position : position + 1]))
        return shaped[0].double().softmax(0)

    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(COMPARED):
        found = {
            (*tokens, token): chance * float(row(tokens)[token])
            for tokens, chance in found.items()
            for token in row(tokens).nonzero().flatten().tolist()
        }
    return found


def p_value(seen: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    assert seen.keys() <= expected.keys()
    counts = torch.tensor([seen[tokens] for tokens in expected])
    chances = torch.tensor(list(expected.values()), dtype=torch.double)
    return chi_square(counts, chances / chances.sum())


BLOCK = {"draft": "draft_model", "num_tokens": 2, "verifier": "block"}
TREE = {"draft": "draft_model", "num_tokens": 2, "num_drafts": 2, "verifier": "traversal"}
REQUESTS = {"block": 160, "traversal": 40}  # of `CHOICES` each


def test_the_law_of_the_first_three_tokens(raw: httpx.Client) -> None:
    """Chains and trees share steps; each of them, and all together, are compared."""

    def drawn(asked: tuple[int, dict[str, Any]]) -> tuple[str, list[tuple[int, ...]], int]:
        seed, way = asked
        fields = {"n": CHOICES, "max_tokens": COMPARED + 1, "ignore_eos": True, "return_token_ids": True} | FIELDS
        answer = post_completion(raw, prompt=PROMPT, seed=seed, spec_decode=way, **fields).json()
        report = answer["drafthouse"]["spec_decode"]
        assert report["verifier"] == way["verifier"] and report["drafted"] > 0
        return (
            way["verifier"],
            [tuple(choice["token_ids"][:COMPARED]) for choice in answer["choices"]],
            report["accepted"],
        )

    ways = [TREE if i % 5 == 0 else BLOCK for i in range(sum(REQUESTS.values()))]
    found = at_once(drawn, list(enumerate(ways)))
    expected = law()
    assert len(expected) > 8
    by_rule = {rule: Counter(tokens for of, own, _ in found for tokens in own if of == rule) for rule in REQUESTS}
    for rule, seen in by_rule.items():
        assert seen.total() == REQUESTS[rule] * CHOICES
        assert p_value(seen, expected) > LEAST
        assert sum(accepted for of, _, accepted in found if of == rule) > seen.total() / 10
    together = sum(by_rule.values(), Counter())
    assert together.total() == 20_000
    assert p_value(together, expected) > LEAST
