"""/v1/analysis/steps: numbers that can be had from echoed log-probabilities as well, cheaper, and its refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from server.state import Limits
from server.step_analysis import TOKENS_IN_FLIGHT, analyse
from tests.server.conformance.helpers import MESSAGES, MODEL, PROMPT, refused
from tests.server.fake_runner import FakeRunner
from tests.server.live import Live, fake_state, start
from voting.step_importance import Derivation

DOCUMENT = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
PATH = "/v1/analysis/steps"
REASONING = "Tom has 3 apples. É!\n\nHe buys 4 more.\n \nWait, no, let me check: 3 + 4 = 7.\n\n So 😀 seven."
STEPS = ["Tom has 3 apples. É!\n\n", "He buys 4 more.\n \n", "Wait, no, let me check: 3 + 4 = 7.\n\n", " So 😀 seven."]
ANSWER = "\n#### 7"
EQUAL = 1e-4  # log-probabilities vary in their last digits with the shape of the batch


@pytest.fixture
def fake(live: Live) -> FakeRunner:
    if not hasattr(live.runner, "behaviour"):
        pytest.skip("needs a runner that misbehaves on demand")
    runner: FakeRunner = live.runner
    return runner


@pytest.fixture
def other(request: pytest.FixtureRequest) -> Iterator[tuple[Live, httpx.Client]]:
    """A server with the options of the test's mark."""
    live = start(fake_state(**request.param))
    with httpx.Client(base_url=live.url, timeout=30) as raw:
        yield live, raw
    live.stop()


def post(raw: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "prompt": PROMPT, "reasoning": REASONING, "answer": ANSWER} | fields
    return raw.post(PATH, json={name: value for name, value in body.items() if value is not None})


def ask(raw: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = post(raw, **fields)
    assert response.status_code == 200, response.text
    return dict(response.json())


def ids_of(raw: httpx.Client, special: bool = False, **fields: Any) -> list[int]:
    return list(raw.post("/tokenize", json={"add_special_tokens": special} | fields).json()["tokens"])


def echoed(raw: httpx.Client, ids: list[int], last: int) -> float:
    """Minus the log-probability of the last tokens, as /v1/completions says it."""
    body = {"model": MODEL, "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    logprobs = raw.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]["token_logprobs"]
    return -sum(logprobs[-last:])


def numbers(body: dict[str, Any]) -> list[float]:
    return [body["base_nll"], *(one[name] for one in body["steps"] for name in ("importance", "nll_without"))]


# --- what it says


def test_it_is_what_echoed_logprobs_say(raw: httpx.Client) -> None:
    body = ask(raw, normalise="sum")
    prompt, answer = ids_of(raw, True, prompt=PROMPT), ids_of(raw, prompt=ANSWER)
    steps = [ids_of(raw, prompt=step) for step in STEPS]
    assert body["n_answer_tokens"] == len(answer)
    assert [one["n_tokens"] for one in body["steps"]] == list(map(len, steps))
    base = echoed(raw, sum(steps, prompt) + answer, len(answer))
    assert body["base_nll"] == pytest.approx(base, abs=EQUAL)
    for number, one in enumerate(body["steps"]):
        without = echoed(raw, sum(steps[:number] + steps[number + 1 :], prompt) + answer, len(answer))
        assert one["nll_without"] == pytest.approx(without, abs=EQUAL)
        assert one["importance"] == one["nll_without"] - body["base_nll"]
        assert one["importance"] == pytest.approx(without - base, abs=2 * EQUAL)
    lengths = [len(prompt + answer) + sum(map(len, steps)) - own for own in (0, *map(len, steps))]
    usage = body["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] == sum(lengths) and usage["completion_tokens"] == 0


def test_the_frame(raw: httpx.Client, live: Live) -> None:
    body = ask(raw)
    assert body["object"] == "analysis.steps" and body["id"].startswith("steps-") and body["model"] == MODEL
    assert isinstance(body["created"], int) and body["system_fingerprint"] == live.state.models[0].fingerprint
    assert [one["index"] for one in body["steps"]] == [0, 1, 2, 3]
    assert [one["text"] for one in body["steps"]] == STEPS
    assert [REASONING[one["start"] : one["end"]] for one in body["steps"]] == STEPS
    assert all(one["end"] == two["start"] for one, two in pairwise(body["steps"]))
    assert [one["kind"] for one in body["steps"]] == ["progressive", "progressive", "error_correction", "progressive"]


def test_per_token_and_in_all(raw: httpx.Client) -> None:
    token, whole = ask(raw), ask(raw, normalise="sum")
    assert (token["normalise"], whole["normalise"]) == ("token", "sum")
    n = token["n_answer_tokens"]
    assert n > 1
    assert [n * value for value in numbers(token)] == pytest.approx(numbers(whole), abs=EQUAL)


def test_a_step_of_nothing_is_worth_nothing(raw: httpx.Client) -> None:
    plain, padded = ask(raw, reasoning=None, steps=STEPS), ask(raw, reasoning=None, steps=["", *STEPS, ""])
    for one in (padded["steps"][0], padded["steps"][-1]):
        assert (one["importance"], one["n_tokens"], one["nll_without"]) == (0.0, 0, padded["base_nll"])
    assert numbers(padded | {"steps": padded["steps"][1:-1]}) == pytest.approx(numbers(plain), abs=EQUAL)
    assert padded["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]


@pytest.mark.parametrize("fields", [{"reasoning": ""}, {"reasoning": None, "steps": []}])
def test_without_steps_there_is_the_base(raw: httpx.Client, fields: dict[str, Any]) -> None:
    body = ask(raw, **fields)
    assert body["steps"] == []
    ids = ids_of(raw, True, prompt=PROMPT) + ids_of(raw, prompt=ANSWER)
    base = echoed(raw, ids, body["n_answer_tokens"]) / body["n_answer_tokens"]
    assert body["base_nll"] == pytest.approx(base, abs=EQUAL)
    assert body["usage"]["prompt_tokens"] == len(ids)


def test_prompts_of_every_form(raw: httpx.Client) -> None:
    ids = ids_of(raw, True, prompt=PROMPT)
    assert numbers(ask(raw, prompt=ids)) == pytest.approx(numbers(ask(raw)), abs=EQUAL)
    plain = ids_of(raw, prompt=PROMPT)
    without = ask(raw, add_special_tokens=False)
    assert numbers(without) == pytest.approx(numbers(ask(raw, prompt=plain)), abs=EQUAL)
    for fields in ({}, {"add_generation_prompt": False}):
        chat = raw.post("/tokenize", json={"messages": MESSAGES, **fields}).json()["tokens"]
        said = ask(raw, prompt=None, messages=MESSAGES, **fields)
        assert numbers(said) == pytest.approx(numbers(ask(raw, prompt=chat)), abs=EQUAL)


@pytest.mark.parametrize(
    ("segment", "count"),
    [(None, 4), ("blank_line", 4), ("line", 4), ("sentence", 5), ({"regex": r"\n\s*\n"}, 4), ({"regex": "Z"}, 1)],
)
def test_segments(raw: httpx.Client, segment: Any, count: int) -> None:
    texts = [one["text"] for one in ask(raw, segment=segment)["steps"]]
    assert len(texts) == count and "".join(texts) == REASONING


def test_kinds_may_be_given(raw: httpx.Client) -> None:
    kinds = ["verification", "multi_method", "progressive", "error_correction"]
    assert [one["kind"] for one in ask(raw, kinds=kinds)["steps"]] == kinds


def test_a_preset_draws_otherwise_and_finds_the_same_probable(raw: httpx.Client) -> None:
    body = ask(raw, model=f"{MODEL}@narrow")
    assert body["model"] == f"{MODEL}@narrow"
    assert numbers(body) == pytest.approx(numbers(ask(raw)), abs=EQUAL)
    refused(post(raw, model=f"{MODEL}@none"), "model", 404, "model_not_found")


def test_request_ids(raw: httpx.Client) -> None:
    assert post(raw, request_id="mine").headers["x-request-id"] == "mine"
    assert post(raw, rid="mine too").headers["x-request-id"] == "mine too"


def test_the_documented_example(live: Live, raw: httpx.Client) -> None:
    section = DOCUMENT[DOCUMENT.index("## Importance of steps") : DOCUMENT.index("## Errors")]
    example = re.findall(r"-d '(\{.*?\n\})'", section, re.DOTALL)[0]
    response = raw.post(PATH, content=example)
    assert response.status_code == 200, response.text
    if hasattr(live.runner, "behaviour"):
        return  # a hash finds other steps important
    body, said = response.json(), json.loads(re.findall(r"```json\n(.*?)```", section, re.DOTALL)[0])
    assert said.keys() < body.keys()
    assert numbers(body) == pytest.approx(numbers(said), abs=EQUAL)
    for name in ("object", "normalise", "n_answer_tokens"):
        assert body[name] == said[name]
    exact = ("index", "text", "start", "end", "n_tokens", "kind")
    for one, other in zip(body["steps"], said["steps"], strict=True):
        assert one.keys() == other.keys()
        assert [one[name] for name in exact] == [other[name] for name in exact]


# --- what it costs


def test_half_of_a_long_reasoning_is_cached(live: Live, raw: httpx.Client) -> None:
    if hasattr(live.runner, "behaviour"):
        pytest.skip("needs a runner with a cache")
    steps = [f"Then number {i} is added to what there is.\n" for i in range(32)]
    body = ask(raw, reasoning=None, steps=steps, cache_salt="half")
    page = live.runner.executor.pages.page_size
    prompt, answer = ids_of(raw, True, prompt=PROMPT), ids_of(raw, prompt=ANSWER)
    parts = [ids_of(raw, prompt=step) for step in steps]
    whole, expected = sum(parts, prompt) + answer, 0
    for number in range(len(steps)):
        ids = sum(parts[:number] + parts[number + 1 :], prompt) + answer
        same = next(at for at, (one, other) in enumerate(zip(ids, whole, strict=False)) if one != other)
        expected += min(same, len(ids) - len(answer) - 1) // page * page
    usage = body["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == expected
    assert 0.35 < expected / usage["prompt_tokens"] < 0.5  # pages of 64 tokens, prompts of 400
    secret = ask(raw, reasoning=None, steps=steps, cache_salt="other")["usage"]
    assert secret == usage  # another salt finds nothing of it


@pytest.mark.parametrize(
    ("length", "most"), [(10, 5), (TOKENS_IN_FLIGHT // 3 - 20, 3), (TOKENS_IN_FLIGHT, 1)], ids=["some", "fewer", "one"]
)
async def test_few_tokens_are_in_flight(length: int, most: int) -> None:
    """As many prompts as the server allows one request, and no more tokens than an engine lets wait."""
    model = fake_state().models[0]
    runner = model.runner
    assert isinstance(runner, FakeRunner)
    runner.behaviour.step_s = 0.01
    runner.max_model_len = length + 14
    at_once = []

    def raw(history: tuple[int, ...]) -> np.ndarray:
        at_once.append(len(runner.live))
        return np.zeros(4096)

    runner.raw = raw  # type: ignore[method-assign]
    whole = Derivation((6,) * length, tuple((7 + number,) for number in range(12)), (8, 9))
    found = await analyse(model, whole, "sum", identity="a", prompts_in_flight=5, cache_salt="", priority=0)
    assert max(at_once) == most
    assert found.prompt_tokens == len(whole.ids()) + 12 * (len(whole.ids()) - 1)


def test_everything_asked_is_scored_and_keeps_salt_and_priority(fake: FakeRunner, raw: httpx.Client) -> None:
    ask(raw, cache_salt="mine", priority=3)
    assert {(one.cache_salt, one.priority, one.max_tokens, one.prompt_logprobs) for one in fake.requests} == {
        ("mine", 3, 0, 0)
    }
    assert len(fake.requests) == 5 and len({one.id for one in fake.requests}) == 5
    n = ask(raw)["n_answer_tokens"]
    assert {len(one.prompt_ids) - one.scored_from for one in fake.requests} == {n}


# --- what goes wrong


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"answer": ""}, "answer"),
        ({"answer": None}, "answer"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt[0]"),
        ({"prompt": [1, 10**6]}, "prompt[1]"),
        ({"messages": MESSAGES}, "prompt"),
        ({"prompt": None, "messages": []}, "messages"),
        ({"prompt": None, "messages": [{"role": "user"}]}, "messages[0]"),
        ({"chat_template_kwargs": {}}, "chat_template_kwargs"),
        ({"reasoning": None}, "reasoning"),
        ({"steps": ["a"]}, "reasoning"),
        ({"reasoning": 3}, "reasoning"),
        ({"reasoning": None, "steps": "a"}, "steps"),
        ({"reasoning": None, "steps": ["a", 3]}, "steps[1]"),
        ({"reasoning": None, "steps": ["a"] * 257}, "steps"),
        ({"reasoning": "a\n" * 257, "segment": "line"}, "segment"),
        ({"reasoning": None, "steps": ["a"], "segment": "line"}, "segment"),
        ({"segment": "paragraph"}, "segment"),
        ({"segment": {}}, "segment.regex"),
        ({"segment": {"regex": ""}}, "segment.regex"),
        ({"segment": {"regex": "("}}, "segment.regex"),
        ({"segment": {"regex": "a", "group": 1}}, "segment.group"),
        ({"normalise": "byte"}, "normalise"),
        ({"kinds": ["progressive"]}, "kinds"),
        ({"kinds": ["progressive"] * 5}, "kinds"),
        ({"kinds": ["progressive", "verification", "none", "progressive"]}, "kinds[2]"),
        ({"temperature": 0.5}, "temperature"),
        ({"stream": True}, "stream"),
        ({"sampler": "gumbel"}, "sampler"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"output_schema": {}}, "output_schema"),
        ({"priority": 2**31}, "priority"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"model": "none"}, "model"),
    ],
)
def test_refusals(raw: httpx.Client, fields: dict[str, Any], param: str) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "reasoning": REASONING, "answer": ANSWER} | fields
    refused(raw.post(PATH, json=body), param, 404 if "model" in fields else 400)


def test_an_unknown_field_at_the_top_is_ignored_as_everywhere(raw: httpx.Client) -> None:
    assert numbers(ask(raw, unheard_of=1, user="me", metadata={})) == pytest.approx(numbers(ask(raw)), abs=EQUAL)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning": " word" * 600}, "reasoning"),
        ({"reasoning": None, "steps": [" word" * 60] * 10}, "steps"),
        ({"reasoning": "x" * 200_000}, "reasoning"),
        ({"answer": "x" * 200_000}, "answer"),
        ({"prompt": " word" * 600}, "prompt"),
        ({"prompt": [7] * 600}, "prompt"),
        ({"prompt": "x" * 200_000}, "prompt"),
    ],
)
def test_it_has_to_fit_into_the_context(raw: httpx.Client, fields: dict[str, Any], param: str) -> None:
    refused(post(raw, **fields), param, 400, "context_length_exceeded")


def test_it_may_fill_the_context(raw: httpx.Client, live: Live) -> None:
    n = ask(raw, reasoning="")["n_answer_tokens"]
    full = [7] * (live.runner.max_model_len - n)
    ask(raw, prompt=full, reasoning="")
    refused(post(raw, prompt=[*full, 7], reasoning=""), "prompt", 400, "context_length_exceeded")


def test_method_and_body(raw: httpx.Client, live: Live) -> None:
    refused(raw.get(PATH), status=405)
    refused(raw.post(PATH, content=b"{"), status=400, code="invalid_json")
    refused(raw.post(PATH, content=b" " * (live.state.limits.body_bytes + 1)), status=413)


def test_impossible_answers_are_finite(fake: FakeRunner, raw: httpx.Client, live: Live) -> None:
    body = ask(raw, answer=live.codec.token_text(5))  # a token that this runner's model never draws
    assert body["base_nll"] == 9999.0
    assert all(one["importance"] == 0.0 for one in body["steps"])


def test_a_model_that_says_nothing_is_our_fault(fake: FakeRunner, raw: httpx.Client) -> None:
    try:
        fake.raw = lambda history: np.full(4096, np.nan, np.float32)  # type: ignore[method-assign]
        refused(post(raw), status=500, code="internal_error")
    finally:
        del fake.raw


def test_a_runner_that_cannot(fake: FakeRunner, raw: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "capabilities", frozenset())
    refused(post(raw), "model", 400, "unsupported_by_runner")


def test_failures_of_the_engine(fake: FakeRunner, raw: httpx.Client, live: Live) -> None:
    fake.behaviour.overloaded = True
    response = post(raw)
    refused(response, status=503, code="overloaded")
    assert response.headers["retry-after"]
    fake.reset()
    fake.behaviour.too_large = True
    refused(post(raw), status=400, code="context_length_exceeded")
    fake.reset()
    fake.behaviour.fail_after = 0
    refused(post(raw), status=503, code="overloaded")
    live.wait(lambda: not fake.live)


def test_a_client_that_leaves_leaves_nothing_behind(fake: FakeRunner, raw: httpx.Client, live: Live) -> None:
    fake.behaviour.step_s = 0.2
    with pytest.raises(httpx.ReadTimeout):
        body = {"model": MODEL, "prompt": PROMPT, "steps": ["a"] * 200, "answer": ANSWER}
        raw.post(PATH, json=body, timeout=0.3)
    live.wait(lambda: not fake.live)
    assert len(fake.requests) < 200


@pytest.mark.parametrize("other", [{"api_keys": ("k",), "limits": Limits(prompts_in_flight=1)}], indirect=True)
def test_keys_and_draining(other: tuple[Live, httpx.Client]) -> None:
    live, raw = other
    refused(post(raw), status=401, code="invalid_api_key")
    raw.headers["authorization"] = "Bearer k"
    ask(raw)
    live.state.draining = True
    refused(post(raw), status=503, code="overloaded")


def test_document_and_metrics(raw: httpx.Client) -> None:
    ask(raw)
    operation = raw.get("/openapi.json").json()["paths"][PATH]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/StepsBody")
    assert f'drafthouse_http_requests_total{{route="{PATH}",status="200"}}' in raw.get("/metrics").text
