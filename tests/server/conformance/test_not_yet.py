"""Checklist points 62-79 and 95-103: structured output, tools, Responses. Each is refused by name."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.conformance.helpers import post_chat, post_completion, refused

SCHEMA = {"name": "answer", "schema": {"type": "object"}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        pytest.param(
            {"response_format": {"type": "json_object"}}, "response_format", "unsupported_by_runner", id="c62"
        ),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
            "response_format", "unsupported_by_runner", id="c63_c64_c66_c67",
        ),
        pytest.param({"response_format": {"type": "json_schema"}}, "response_format.json_schema", None, id="c65"),
        pytest.param({"response_format": {"type": "xml"}}, "response_format.type", None, id="unknown_format"),
        pytest.param({"structured_outputs": {"regex": "a"}}, "structured_outputs", "unsupported_by_runner", id="c68"),
        pytest.param(
            {"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "unsupported_by_runner",
            id="c69",
        ),
        pytest.param({"guided_json": {}}, "guided_json", "unsupported_by_runner", id="c70_json"),
        pytest.param({"guided_choice": ["a"]}, "guided_choice", "unsupported_by_runner", id="c70_choice"),
        pytest.param({"regex": "a"}, "regex", "unsupported_by_runner", id="c70_regex"),
        pytest.param({"ebnf": "a"}, "ebnf", "unsupported_by_runner", id="c70_ebnf"),
        pytest.param({"guided_decoding_backend": "magic"}, "guided_decoding_backend", None, id="unknown_backend"),
    ],
)  # fmt: skip
def test_structured_output(raw: httpx.Client, fields: dict[str, Any], param: str, code: str | None) -> None:
    refused(post_chat(raw, **fields), param, code=code)
    refused(post_completion(raw, **fields), param, code=code)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        pytest.param({"tools": [TOOL]}, "tools", id="c71_c76_c78_c79"),
        pytest.param({"tools": [TOOL], "tool_choice": "required"}, "tools", id="c72"),
        pytest.param(
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "add"}}}, "tools", id="c73"
        ),
        pytest.param({"tools": [TOOL], "parallel_tool_calls": False}, "tools", id="c75"),
        pytest.param({"tools": []}, "tools", id="c77_empty"),
        pytest.param({"tool_choice": "auto"}, "tool_choice", id="c77_choice_without_tools"),
        pytest.param({"tool_choice": "required"}, "tool_choice", id="c77_required_without_tools"),
        pytest.param({"tools": [3]}, "tools[0]", id="wrong_type"),
    ],
)
def test_tools(raw: httpx.Client, fields: dict[str, Any], param: str) -> None:
    refused(post_chat(raw, **fields), param)


def test_c74_tool_choice_none(raw: httpx.Client) -> None:
    message = post_chat(raw, tool_choice="none").json()["choices"][0]["message"]
    assert not message.get("tool_calls")


@pytest.mark.parametrize("body", [{"model": "drafthouse-tiny", "input": "hi"}, {}, {"previous_response_id": "x"}])
def test_c95_to_c103_responses(raw: httpx.Client, body: dict[str, Any]) -> None:
    error = refused(raw.post("/v1/responses", json=body), code="unsupported_by_runner")
    assert "chat/completions" in error["message"]
