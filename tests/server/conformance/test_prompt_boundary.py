"""`prompt_boundary`: the end of a prompt is continued as text, with the law of its covers."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import Any

import httpx
import pytest
from scipy.stats import chisquare

from engine.request import DecodeRequest
from engine.runners.base import EngineFailed
from samplers.chain import resolve
from server.presets import PresetError, check_presets
from tests.server.conformance.helpers import MODEL, data_lines, post_chat, post_completion, refused
from tests.server.live import Live

PROMPT = "def ma"
END = -1  # the text is over


def ask(raw: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = post_completion(raw, **{"prompt": PROMPT, "prompt_boundary": "exact", "max_tokens": 6, **fields})
    assert response.status_code == 200, response.text
    body = response.json()
    assert isinstance(body, dict)
    return body


def texts(body: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in body["choices"]]


def row(live: Live, ids: tuple[int, ...]) -> list[float]:
    """ln P(next token | ids) of the served model, by an ordinary request."""

    async def ask_runner() -> list[float]:
        request = DecodeRequest(
            f"row-{ids}", ids, resolve({}, 4096), 0, 1, logprobs=0, logprob_token_ids=tuple(range(4096))
        )
        async for output in live.runner.submit(request):
            return [logprob for _, logprob in output.deltas[0].scores[0].extra]
        raise AssertionError

    return asyncio.run_coroutine_threadsafe(ask_runner(), live.loop).result(30)


def weigh(live: Live, ids: list[int], keep: int | None = None) -> tuple[Any, list[float]]:
    """(a prompt's covering, ln of the weight of each cover)."""
    covering = live.state.models[0].covers.exact(ids, keep)
    rows = {context: row(live, covering.kept + context) for context in covering.questions()}
    shared = range(len(covering.kept) if keep is None else keep, len(covering.kept))
    stays = [row(live, covering.kept[:at])[covering.kept[at]] for at in shared]  # of what all covers begin with
    weights = covering.log_weights({context: dict(enumerate(values)) for context, values in rows.items()})
    return covering, [weight + math.fsum(stays) for weight in weights]


def next_bytes(live: Live, ids: list[int]) -> dict[int, float]:
    """The law of the first byte behind a prompt, by enumeration of its covers."""
    covering, weights = weigh(live, ids)
    total = math.fsum(map(math.exp, weights))
    law: Counter[int] = Counter()
    for cover, weight in zip(covering.covers, weights, strict=True):
        share = math.exp(weight) / total
        if cover.beyond:
            law[cover.beyond[0]] += share
            continue
        for token, logprob in enumerate(row(live, covering.kept + cover.ids)):
            piece = live.codec.token_bytes(token)
            law[END if token in live.codec.special_ids else piece[0]] += share * math.exp(logprob)
    return law


@pytest.mark.parametrize("prompt", [PROMPT, "x = foo(s", "import os\n\n"])
def test_what_follows_has_the_law_of_the_covers(live: Live, raw: httpx.Client, prompt: str) -> None:
    law = next_bytes(live, live.codec.encode_plain(prompt))
    assert math.fsum(law.values()) == pytest.approx(1, abs=1e-4)
    seen: Counter[int] = Counter()
    for seed in range(6):
        body = ask(raw, prompt=prompt, seed=seed, n=128, max_tokens=1, return_token_ids=True, skip_special_tokens=True)
        for choice in body["choices"]:
            token = choice["token_ids"][0]
            hidden = len(live.codec.decode([*choice["prompt_token_ids"]]).encode())
            behind = prompt.encode()[hidden:]  # what of the prompt the first generated token spells
            piece = live.codec.token_bytes(token)
            assert piece.startswith(behind)
            seen[END if token in live.codec.special_ids else piece[len(behind)]] += 1
    draws = sum(seen.values())
    common = [byte for byte, share in law.items() if share * draws >= 5]
    observed = [*(seen[byte] for byte in common), sum(seen[byte] for byte in seen if byte not in common)]
    expected = [*(law[byte] * draws for byte in common)]
    expected.append(draws - sum(expected))
    assert all(law.get(byte, 0) > 0 for byte in seen)
    assert chisquare(observed, expected).pvalue > 1e-3


def test_the_embedded_model_goes_on_as_its_strings_do(live: Live, raw: httpx.Client) -> None:
    """P(x a) / P(x), each weighed by its own covers; the model puts little mass on what is not canonical."""
    if not hasattr(live.runner, "executor"):
        pytest.skip("a hash gives all tokenizations of a text the same chance")
    ids = live.codec.encode_plain(PROMPT)
    law = next_bytes(live, ids)
    covering, weights = weigh(live, ids)
    whole = math.fsum(map(math.exp, weights))
    apart = 0.0
    for letter in "abcdefghijklmnopqrstuvwxyz_(":
        _, longer = weigh(live, [*ids, *live.codec.encode_plain(letter)], keep=len(covering.kept))
        apart += abs(math.fsum(map(math.exp, longer)) / whole - law[ord(letter)])
    assert apart / 2 < 0.03


def test_off_changes_nothing(live: Live, raw: httpx.Client) -> None:
    fields = {"n": 3, "logprobs": 2, "return_token_ids": True, "echo": True}
    without, off = (ask(raw, prompt_boundary=mode, **fields) for mode in (None, "off"))
    assert without["choices"] == off["choices"] and without["usage"] == off["usage"]
    assert without["drafthouse"] == off["drafthouse"] and "prompt_boundary" not in off["drafthouse"]


@pytest.mark.parametrize("mode", ["exact", "heal"])
def test_tokens_spell_the_prompt_and_the_text(live: Live, raw: httpx.Client, mode: str) -> None:
    body = ask(raw, prompt_boundary=mode, n=8, return_token_ids=True, skip_special_tokens=False)
    counted = 0
    for choice in body["choices"]:
        spelled = live.codec.decode([*choice["prompt_token_ids"], *choice["token_ids"]])
        assert spelled.startswith(PROMPT)
        if choice["finish_reason"] == "length":
            assert spelled == PROMPT + choice["text"] and len(choice["token_ids"]) == 6
        counted += len(choice["token_ids"])
    sent = len(live.codec.encode_plain(PROMPT))
    assert body["usage"]["prompt_tokens"] == sent and body["usage"]["completion_tokens"] == counted
    assert body["usage"]["total_tokens"] == sent + counted
    used = body["drafthouse"]["prompt_boundary"]
    assert used["mode"] == mode and used["bytes"] == 3 and used["covers"] > 1
    assert body["prompt_token_ids"] == live.codec.encode_plain(PROMPT)


def test_a_choice_does_not_depend_on_the_others(raw: httpx.Client) -> None:
    many = texts(ask(raw, n=8))
    assert [texts(ask(raw, n=count)) for count in (1, 3)] == [many[:1], many[:3]]
    assert len(set(many)) > 1 and texts(ask(raw, n=8, seed=8)) != many
    both = ask(raw, prompt=[PROMPT, "x = fo"], n=2)
    assert texts(both) == texts(ask(raw, n=2)) + texts(ask(raw, prompt="x = fo", n=2))


def test_streams_say_the_same(raw: httpx.Client) -> None:
    whole = ask(raw, n=4, logprobs=1, return_token_ids=True)
    response = post_completion(
        raw, prompt=PROMPT, prompt_boundary="exact", max_tokens=6, n=4, logprobs=1, return_token_ids=True, stream=True
    )
    chunks = data_lines(response)
    for choice in whole["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert own[0]["prompt_token_ids"] == choice["prompt_token_ids"]
        assert [token for c in own for token in c["token_ids"]] == choice["token_ids"]
        listed = [token for c in own if c["logprobs"] for token in c["logprobs"]["tokens"]]
        assert listed == choice["logprobs"]["tokens"]
    assert chunks[-1]["drafthouse"]["prompt_boundary"] == whole["drafthouse"]["prompt_boundary"]


def test_the_echo_shows_the_prompt_once(raw: httpx.Client) -> None:
    assert texts(ask(raw, n=4, echo=True)) == [PROMPT + text for text in texts(ask(raw, n=4))]


def test_greedy_takes_the_likeliest_cover(live: Live, raw: httpx.Client) -> None:
    covering, weights = weigh(live, live.codec.encode_plain(PROMPT))
    best = covering.covers[weights.index(max(weights))]
    body = ask(raw, n=3, temperature=0, return_token_ids=True)
    for choice in body["choices"]:
        spelled = (*choice["prompt_token_ids"], *choice["token_ids"])
        assert spelled[: len(covering.kept) + len(best.ids)] == covering.kept + best.ids
    assert len(set(texts(body))) == 1


def test_log_probabilities_of_the_first_token(live: Live, raw: httpx.Client) -> None:
    body = ask(raw, n=4, logprobs=2, logprob_token_ids=[17], return_token_ids=True)
    for choice in body["choices"]:
        listed, ids = choice["logprobs"], choice["token_ids"]
        if choice["finish_reason"] == "length":
            assert listed["tokens"] == [live.codec.token_text(token) for token in ids]
        first = row(live, tuple(choice["prompt_token_ids"]))[ids[0]]
        assert listed["token_logprobs"][0] == pytest.approx(first, abs=1e-3)
        assert listed["text_offset"][0] == 0
        assert live.codec.token_text(17) in listed["top_logprobs"][0] and len(listed["top_logprobs"][0]) >= 3
        assert choice["cumulative_logprob"] == pytest.approx(sum(listed["token_logprobs"]), abs=1e-3)


def test_limits_count_the_first_token(raw: httpx.Client) -> None:
    many = ask(raw, n=8, return_token_ids=True)
    short = ask(raw, n=8, max_tokens=1, return_token_ids=True)
    for one, long in zip(short["choices"], many["choices"], strict=True):
        assert one["token_ids"] == long["token_ids"][:1] and long["text"].startswith(one["text"])
        assert one["finish_reason"] == "length" or one["token_ids"][0] == 1
    assert short["usage"]["completion_tokens"] == 8
    # stop strings see what the first token adds, and not what it shares with the prompt
    text = texts(many)[0]
    stopped = ask(raw, stop=[text[0]])["choices"][0]
    assert stopped["text"] == "" and stopped["stop_reason"] == text[0]
    assert texts(ask(raw, stop=["def m"])) == [text]
    first = many["choices"][0]["token_ids"][0]
    ended = ask(raw, stop_token_ids=[first], return_token_ids=True)["choices"][0]
    assert ended["stop_reason"] == first and ended["text"] == "" and ended["token_ids"] == [first]
    held = ask(raw, stop_token_ids=[first], min_tokens=3, return_token_ids=True)["choices"][0]
    assert len(held["token_ids"]) >= 3


def test_id_prompts_are_their_bytes(live: Live, raw: httpx.Client) -> None:
    bytewise = [*live.codec.encode_plain("def"), *(live.codec.encode_plain(c)[0] for c in " ma")]
    assert texts(ask(raw, prompt=bytewise, n=4)) == texts(ask(raw, n=4))
    inside = live.codec.encode_plain("x = 中")[:-1]  # ends inside a character
    body = ask(raw, prompt=inside, n=2, return_token_ids=True)
    for choice in body["choices"]:
        spelled = b"".join(map(live.codec.token_bytes, (*choice["prompt_token_ids"], *choice["token_ids"])))
        assert spelled.startswith(b"".join(map(live.codec.token_bytes, inside)))


def test_where_nothing_can_be_joined_the_answer_is_that_of_the_tokens(raw: httpx.Client) -> None:
    fields = {"n": 3, "return_token_ids": True, "logprobs": 1}
    for prompt in ("1 + 12", "hello<|user|>", "im"):  # digits stand alone; a special token; a first token
        plain, exact = (ask(raw, prompt=prompt, prompt_boundary=mode, **fields) for mode in ("off", "exact"))
        assert plain["choices"] == exact["choices"] and plain["usage"] == exact["usage"], prompt
    assert exact["drafthouse"]["prompt_boundary"] == {"mode": "exact", "bytes": 0, "covers": 0}


def test_chat_continues_its_last_message_and_nothing_else(live: Live, raw: httpx.Client) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Tom ha"}]
    fields: dict[str, Any] = {"prompt_boundary": "exact", "n": 2, "return_token_ids": True, "max_tokens": 5}
    fields["skip_special_tokens"] = False
    body = post_chat(raw, messages=messages, continue_final_message=True, echo=True, **fields).json()
    for choice in body["choices"]:
        spelled = live.codec.decode([*choice["prompt_token_ids"], *choice["token_ids"]])
        assert "Tom ha" in spelled
        if choice["finish_reason"] == "length":
            assert spelled.endswith(choice["message"]["content"]) and choice["message"]["content"].startswith("Tom ha")
    chunks = data_lines(
        post_chat(raw, messages=messages, continue_final_message=True, echo=True, stream=True, **fields)
    )
    deltas = [c for chunk in chunks for c in chunk["choices"] if c["index"] == 1]
    assert "".join(c["delta"].get("content") or "" for c in deltas) == body["choices"][1]["message"]["content"]
    assert deltas[0]["prompt_token_ids"] == body["choices"][1]["prompt_token_ids"]
    plain, exact = (post_chat(raw, **fields | {"prompt_boundary": mode}).json() for mode in ("off", "exact"))
    assert plain["choices"] == exact["choices"]
    assert exact["drafthouse"]["prompt_boundary"]["bytes"] == 0


def test_the_best_of_many(raw: httpx.Client) -> None:
    many = ask(raw, n=5, return_token_ids=True, logprobs=0)["choices"]
    best = max(many, key=lambda one: one["cumulative_logprob"] / len(one["token_ids"]))
    assert texts(ask(raw, best_of=5)) == [best["text"]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_boundary": "sometimes"}, "prompt_boundary"),
        ({"prompt_boundary": True}, "prompt_boundary"),
        ({"prompt_logprobs": 1}, "prompt_boundary"),
        ({"echo": True, "logprobs": 1}, "prompt_boundary"),
        ({"logprobs": 1, "logprobs_mode": "processed"}, "prompt_boundary"),
        ({"allowed_token_ids": [5, 6]}, "prompt_boundary"),
        ({"bad_words": ["x"]}, "prompt_boundary"),
        ({"draw": "arithmetic"}, "prompt_boundary"),
    ],
)
def test_what_covers_cannot_honour_is_refused(raw: httpx.Client, fields: dict[str, Any], param: str) -> None:
    refused(post_completion(raw, **{"prompt": PROMPT, "prompt_boundary": "exact", **fields}), param)


def test_scoring_a_prompt_has_no_boundary(raw: httpx.Client) -> None:
    fields = {"max_tokens": 0, "echo": True, "logprobs": 1}
    plain, exact = (ask(raw, prompt_boundary=mode, **fields) for mode in ("off", "exact"))
    assert plain["choices"] == exact["choices"]


def test_a_prompt_whose_covers_do_not_fit_is_too_long(live: Live, raw: httpx.Client) -> None:
    room = live.runner.max_model_len
    ids = [*live.codec.encode_plain("x " * room)[: room - 2], *live.codec.encode_plain("def")]
    answer = post_completion(raw, prompt=ids[-(room - 1) :], prompt_boundary="exact", max_tokens=1)
    if answer.status_code == 400:
        refused(answer, code="context_length_exceeded")
    else:
        assert answer.json()["usage"]["completion_tokens"] == 1


def test_presets_may_set_it(live: Live) -> None:
    check_presets({"whole": {"prompt_boundary": "exact"}}, live.codec, 4096, 512)
    with pytest.raises(PresetError, match="prompt_boundary"):
        check_presets({"bad": {"prompt_boundary": "yes"}}, live.codec, 4096, 512)


def test_failures_while_covers_are_weighed(live: Live, raw: httpx.Client) -> None:
    if not hasattr(live.runner, "behaviour"):
        pytest.skip("needs a runner that fails on demand")
    fields: dict[str, Any] = {"prompt": PROMPT, "prompt_boundary": "exact", "stream": True}
    live.runner.behaviour.overloaded = True
    assert post_completion(raw, **fields).status_code == 503
    live.runner.reset()
    live.runner.behaviour.raise_after = (0, EngineFailed("the engine stopped"))
    assert post_completion(raw, **fields).status_code == 503
    live.runner.reset()
    live.runner.behaviour.errors = {0: (0, "internal_error")}
    assert post_completion(raw, **fields).status_code == 500
    live.wait(lambda: not live.runner.live)


def test_a_client_that_leaves_while_covers_are_weighed_leaves_nothing_behind(live: Live, raw: httpx.Client) -> None:
    if not hasattr(live.runner, "behaviour"):
        pytest.skip("needs a slow runner")
    live.runner.behaviour.step_s = 0.2
    with pytest.raises(httpx.ReadTimeout):
        body = {"model": MODEL, "prompt": "x = foo(s", "prompt_boundary": "exact", "n": 4}
        raw.post("/v1/completions", json=body, timeout=0.3)
    live.wait(lambda: not live.runner.live)


def test_sub_requests_keep_the_salt_and_the_priority(live: Live, raw: httpx.Client) -> None:
    if not hasattr(live.runner, "requests"):
        pytest.skip("needs a runner that remembers")
    ask(raw, cache_salt="mine", priority=3, n=4, model=MODEL)
    assert {(one.cache_salt, one.priority) for one in live.runner.requests} == {("mine", 3)}
    assert all(one.max_tokens == 1 for one in live.runner.requests[:2])
