"""Streams compared byte for byte with files; only ids, times and float sums are masked.

After a deliberate change of the format: `REWRITE_GOLDEN=1 python -m pytest tests/server/test_golden_streams.py`,
then read the difference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.request import DecodeRequest
from tests.server.conformance.helpers import post
from tests.server.live import Live

FOLDER = Path(__file__).parent / "golden"
MASKS = [
    (r'"id":"(chatcmpl|cmpl)-[0-9a-f]{28}"', r'"id":"\1-ID"'),
    (r'"created":\d{10}', '"created":TIME'),
    (r'"system_fingerprint":"fp_[0-9a-f]{12}"', '"system_fingerprint":"FP"'),
    (r'"cumulative_logprob":-\d+\.\d+', '"cumulative_logprob":SUM'),
]
USAGE = {"stream_options": {"include_usage": True}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {}),
    "chat_usage": ("/v1/chat/completions", USAGE),
    "chat_two_choices": ("/v1/chat/completions", {"n": 2}),
    "chat_stop": ("/v1/chat/completions", {"stop": ["4"]}),
    "chat_error": ("/v1/chat/completions", {}),
    "completion": ("/v1/completions", {"echo": True}),
    "completion_usage": ("/v1/completions", {"n": 2, **USAGE}),
}


@pytest.mark.parametrize("name", CASES)
def test_stream(raw: httpx.Client, live: Live, name: str) -> None:
    def script(request: DecodeRequest, choice: int) -> list[int]:
        return live.codec.encode_plain("3+4=7 €" if choice == 0 else "so")

    live.runner.behaviour.script = script
    if name.endswith("_error"):
        live.runner.behaviour.fail_after = 3
    path, fields = CASES[name]
    text = post(raw, path, stream=True, **fields).content.decode()
    for pattern, mask in MASKS:
        text = re.sub(pattern, mask, text)
    file = FOLDER / f"{name}.txt"
    if os.environ.get("REWRITE_GOLDEN"):
        file.write_bytes(text.encode())
    assert text.encode() == file.read_bytes()
