"""Generated tokens: greedy as transformers gives them, seeded ones independent of everything else in the server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.acceptance.reference import CODE, MODEL, QUESTIONS, Reference

NEW_TOKENS = 48


def complete(http: httpx.Client, prompt: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": NEW_TOKENS, "return_token_ids": True}
    response = http.post("/v1/completions", json=body | fields)
    assert response.status_code == 200, response.text
    return dict(response.json())


def tokens(answer: dict[str, Any]) -> list[list[int]]:
    return [choice["token_ids"] for choice in answer["choices"]]


def test_greedy_equals_transformers(http: httpx.Client, reference: Reference) -> None:
    prompts = reference.prompts()
    expected = [reference.greedy(prompt, NEW_TOKENS) for prompt in prompts]
    assert len(prompts) == 12
    assert [tokens(complete(http, prompt, temperature=0))[0] for prompt in prompts] == expected
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda prompt: complete(http, prompt, temperature=0), prompts))
    assert [tokens(answer)[0] for answer in answers] == expected
    assert tokens(complete(http, prompts, temperature=0)) == expected


def test_greedy_chat_equals_transformers(http: httpx.Client, reference: Reference) -> None:
    for question in QUESTIONS[:3]:
        new = reference.greedy(reference.chat_ids(question), 120)
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "max_tokens": 120}
        answer = http.post("/v1/chat/completions", json=body | {"temperature": 0}).json()
        text = reference.tokenizer.decode([token for token in new if token != reference.eos])
        assert answer["choices"][0]["message"]["content"] == text
        assert answer["usage"]["prompt_tokens"] == len(reference.chat_ids(question))
        assert answer["usage"]["completion_tokens"] == len(new)


def test_greedy_text_ends_before_eos(http: httpx.Client, reference: Reference) -> None:
    """Clients that add the EOS string to `stop` and those that do not must see the same."""
    prompts = [reference.chat_ids(question) for question in QUESTIONS]
    eos = reference.tokenizer.eos_token
    plain = complete(http, prompts, temperature=0, max_tokens=160)
    with_stop = complete(http, prompts, temperature=0, max_tokens=160, stop=["\n\n\n\n", eos])
    for one, other in zip(plain["choices"], with_stop["choices"], strict=True):
        assert one["text"] == other["text"] and eos not in one["text"]


def test_choice_of_few_equals_choice_of_many(http: httpx.Client) -> None:
    for prompt in (CODE[0], CODE[3]):
        few = tokens(complete(http, prompt, n=4, seed=11, temperature=0.9))
        many = tokens(complete(http, prompt, n=8, seed=11, temperature=0.9))
        assert few == many[:4]
        assert len({tuple(one) for one in many}) > 4


def test_results_do_not_depend_on_what_else_runs(http: httpx.Client) -> None:
    def sample(seed: int) -> list[list[int]]:
        fields = {"temperature": 0.8, "top_p": 0.95, "n": 2, "seed": seed}
        return tokens(complete(http, QUESTIONS[seed % len(QUESTIONS)], **fields))

    def other(seed: int) -> None:
        complete(http, CODE[seed % len(CODE)] * (1 + seed % 7), temperature=1.3, n=1 + seed % 3, max_tokens=90)

    alone = [sample(seed) for seed in range(6)]
    with ThreadPoolExecutor(18) as pool:
        others = [pool.submit(other, seed) for seed in range(24)]
        beside = list(pool.map(sample, range(6)))
        for one in others:
            one.result()
    assert beside == alone


def test_prompts_of_one_request_do_not_depend_on_each_other(http: httpx.Client) -> None:
    together = tokens(complete(http, list(CODE[:4]), seed=3))
    assert together == [tokens(complete(http, text, seed=3))[0] for text in CODE[:4]]
