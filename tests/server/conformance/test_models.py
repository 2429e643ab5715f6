"""Checklist points 1-4: models."""

from __future__ import annotations

from urllib.parse import quote

import httpx
import openai
import pytest

from tests.server.conformance.helpers import MODEL, refused


def test_c01_list(client: openai.OpenAI, raw: httpx.Client) -> None:
    body = raw.get("/v1/models").json()
    assert body["object"] == "list"
    first = body["data"][0]
    assert first["id"] == first["root"] == MODEL and first["parent"] is None
    assert all(
        set(one) >= {"id", "object", "created", "owned_by", "root", "parent", "max_model_len"} for one in body["data"]
    )
    presets = ["@" in one["id"] for one in body["data"]]
    assert presets == sorted(presets)  # base models come first
    assert next(iter(client.models.list())).id == MODEL


def test_c02_retrieve(client: openai.OpenAI) -> None:
    model = client.models.retrieve(MODEL)
    assert (model.id, model.object) == (MODEL, "model")


def test_c03_unknown(client: openai.OpenAI, raw: httpx.Client) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"
    refused(raw.get("/v1/models/a%2Fb"), "model", 404, "model_not_found")


def test_c04_ids_with_slash_and_at(client: openai.OpenAI, raw: httpx.Client) -> None:
    for name in [model["id"] for model in raw.get("/v1/models").json()["data"]]:
        assert client.models.retrieve(name).id == name
        for path in (name, quote(name, safe="")):
            assert raw.get(f"/v1/models/{path}").json()["id"] == name
