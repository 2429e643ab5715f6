"""For operators and passers-by: /health, /metrics and a page that says what runs here. /v1/responses says no."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from server.document import operation
from server.errors import bad_request, overloaded
from server.routes.common import json_response, state_of
from server.state import listed_ids

router = APIRouter()

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Drafthouse</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}}</style></head>
<body><h1>Drafthouse</h1>
<p>An OpenAI-compatible server in which the decoding algorithm is a request parameter.</p>
<p>Point any OpenAI client at <code>{base}v1</code>. Served here:</p><ul>{models}</ul>
<p><a href="docs">API document</a> · <a href="v1/models">models</a> · <a href="health">health</a> ·
<a href="metrics">metrics</a></p></body></html>
"""


@router.head("/health", include_in_schema=False, response_model=None)
@router.get("/health", **operation("Whether the next request would be served", 503))
async def health(request: Request) -> Response:
    """200 only when a request would be served."""
    ready, reason = state_of(request).ready()
    if not ready:
        raise overloaded(reason)
    return json_response({"status": "ok"})


@router.get("/metrics", **operation("Metrics in Prometheus text format", media="text/plain"))
async def metrics(request: Request) -> Response:
    """Engine and HTTP figures."""
    return Response(state_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False, response_model=None)
async def page(request: Request) -> Response:
    """What runs here."""
    names = (name for model in state_of(request).models for name in listed_ids(model))
    models = "".join(f"<li><code>{escape(name)}</code></li>" for name in names)
    return HTMLResponse(PAGE.format(base=escape(str(request.base_url)), models=models))


@router.post("/v1/responses", **operation("Not available in this build", 400, success=None))
async def responses(request: Request) -> Response:
    """The Responses API is not served yet."""
    raise bad_request(
        "the Responses API is not available in this build; use /v1/chat/completions", None, "unsupported_by_runner"
    )
