"""A session in a request: where it goes, and that it changes nothing else."""

from __future__ import annotations

import httpx

from tests.server.conformance.helpers import post_chat, post_completion, refused
from tests.server.live import Live


def test_a_cache_key_is_the_session_of_the_request(live: Live, raw: httpx.Client) -> None:
    plain = post_completion(raw, seed=1).json()["choices"]
    assert live.runner.requests[-1].session == ""
    assert post_completion(raw, seed=1, prompt_cache_key="talk").json()["choices"] == plain
    assert live.runner.requests[-1].session == "talk"
    assert post_chat(raw, prompt_cache_key=None).status_code == 200
    assert live.runner.requests[-1].session == ""


def test_a_cache_key_is_text(raw: httpx.Client) -> None:
    refused(post_completion(raw, prompt_cache_key=7), "prompt_cache_key")
