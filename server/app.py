"""Assembles the application: routes, boundary, error shapes. Holds no state of its own beyond the given one."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server import document
from server.boundary import Envelope, Gate
from server.errors import ApiError, bad_request
from server.presets import check_presets_of
from server.routes import analysis, chat, completions, models, ops, tokenize, votes
from server.schema.analysis import StepsBody
from server.schema.chat import ChatBody
from server.schema.completions import CompletionBody
from server.schema.tokenize import DetokenizeBody, TokenizeBody
from server.schema.votes import VerdictBody, VoteBody
from server.state import VERSION, ServerState, listed_ids


def create_app(state: ServerState) -> FastAPI:
    """The application over a state. Raises PresetError if a preset could never be used."""
    for model in state.models:
        check_presets_of(model, state, model.presets)
    app = FastAPI(
        title="Drafthouse",
        version=VERSION,
        description="An OpenAI-compatible server in which the decoding algorithm is a request parameter.",
        redirect_slashes=False,
    )
    app.state.server = state
    routers = [module.router for module in (chat, completions, votes, analysis, models, tokenize, ops)]
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    names = [name for model in state.models for name in listed_ids(model)]
    document.install(
        app, [ChatBody, CompletionBody, VoteBody, VerdictBody, StepsBody, TokenizeBody, DetokenizeBody], names
    )
    app.add_middleware(Gate, state=state)  # the last added is the outermost
    if state.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=state.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    paths = frozenset(route.path for router in routers for route in router.routes if isinstance(route, Route))
    app.add_middleware(Envelope, state=state, paths=paths)
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown routes and wrong methods."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase.lower()
    message = f"{phrase}: {request.method} {request.url.path}"
    return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()


async def _invalid(request: Request, error: Exception) -> Response:
    """Faults the framework itself finds."""
    return bad_request("the request is malformed").response()
