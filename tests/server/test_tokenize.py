"""/tokenize, /detokenize and /tokenizer_info, as remote tokenizer clients use them."""

from __future__ import annotations

import httpx
import pytest

from tests.server.conformance.helpers import MESSAGES, MODEL, post_chat, refused
from tests.server.live import Live


@pytest.mark.parametrize("root", ["", "/v1"])
def test_round_trip(raw: httpx.Client, root: str) -> None:
    text = "def f(x):\n    return 'é 😀' + str(12)\n"
    answer = raw.post(f"{root}/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert answer["count"] == len(answer["tokens"]) and answer["max_model_len"] > 0
    assert raw.post(f"{root}/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}
    assert raw.get(f"{root}/tokenizer_info").json()["eos_token"]


def test_special_strings_are_one_id(raw: httpx.Client) -> None:
    info = raw.get("/tokenizer_info").json()
    assert {"eos_token", "bos_token", "pad_token", "chat_template"} <= set(info)
    for name in ("eos_token", "bos_token"):
        body = {"prompt": info[name], "add_special_tokens": False}
        assert len(raw.post("/tokenize", json=body).json()["tokens"]) == 1


def test_messages(raw: httpx.Client) -> None:
    tokens = raw.post("/tokenize", json={"model": MODEL, "messages": MESSAGES}).json()["tokens"]
    assert len(tokens) == post_chat(raw).json()["usage"]["prompt_tokens"]


def test_strings(raw: httpx.Client, live: Live) -> None:
    answer = raw.post("/tokenize", json={"prompt": "a b", "return_token_strs": True}).json()
    assert answer["token_strs"] == live.codec.token_strings(answer["tokens"])


def test_refused(raw: httpx.Client) -> None:
    refused(raw.post("/tokenize", json={}), "prompt")
    refused(raw.post("/tokenize", json={"prompt": "a", "messages": MESSAGES}), "prompt")
    refused(raw.post("/tokenize", json={"prompt": 3}), "prompt")
    refused(raw.post("/tokenize", json={"prompt": "a", "model": "b"}), "model", 404, "model_not_found")
    refused(raw.post("/detokenize", json={"tokens": [1, 4096]}), "tokens[1]")
    refused(raw.post("/detokenize", json={"tokens": [-1]}), "tokens[0]")
    refused(raw.post("/detokenize", json={"tokens": "a"}), "tokens")
    refused(raw.get("/tokenizer_info?model=b"), "model", 404)
