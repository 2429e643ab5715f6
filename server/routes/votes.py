"""/v1/votes: votes that are stored, so that people can say what is right."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.answers.chat import ChatAnswer
from server.answers.completions import CompletionAnswer
from server.answers.fold import fold, usage
from server.answers.votes import vote_body
from server.auth import fingerprint, owner_of
from server.boundary import suggest_request_id
from server.disconnect import while_connected
from server.document import operation
from server.errors import refuse
from server.generate import Tokens, run
from server.jsontext import dumps_in_parts
from server.offload import offload
from server.plan import checked, prepared
from server.presets import merged
from server.refusals import refuse_foreign
from server.routes.chat import chat_answer
from server.routes.common import state_of
from server.routes.completions import completion_answer
from server.schema.common import INERT
from server.schema.parse import log_unknown, read_body_as, read_fields, refuse_look_alikes, validate
from server.schema.votes import ChatVoteBody, Code, CompletionVoteBody, SamplesVoteBody, VerdictBody, VoteBody
from server.state import ServerState
from server.votes.code import check_code, tests_of
from server.votes.given import hold_given, read_given
from server.votes.problem import Problem
from server.votes.prompting import conversation
from server.votes.request import VoteRequest
from server.votes.result import Held
from server.votes.store import StoredVote
from server.votes.validation import say, session_of
from voting.verdicts import read_verdict

router = APIRouter()
Bodies = ChatVoteBody | CompletionVoteBody | SamplesVoteBody
ONE_OF = "'messages', 'prompt' or 'samples_data' is needed, and not both of the first two"
KNOWN = (*SamplesVoteBody.model_fields, *INERT)
_OF_EVERY_REQUEST = {"request_id", "rid", "user"}


@dataclass(frozen=True)
class Found:
    """A vote that has just been held."""

    held: Held
    model: str | None  # as requested
    usage: Mapping[str, Any]
    response: bytes | None = None  # JSON of what a generation endpoint would have answered
    code: Code | None = None
    passes: Mapping[int, list[bool]] | None = None  # by sample


@dataclass(frozen=True)
class Origin:
    """A vote over given samples, for the judge that it may ask."""

    id: str
    seed: int
    priority: int
    cache_salt: str


@router.post("/v1/votes", **operation("Hold a vote and store it", 404, body=VoteBody))
async def hold(request: Request) -> Response:
    """Draw samples, or take given ones, and let them vote. People may say afterwards what is right."""
    state, arrived = state_of(request), time.perf_counter()

    def read(raw: dict[str, Any]) -> tuple[dict[str, Any], Bodies]:
        kind = _kind(raw)
        if not issubclass(kind, SamplesVoteBody):
            raw = prepared(request, raw, kind)
            return raw, validate(kind, raw)
        suggest_request_id(request, raw.get("request_id") or raw.get("rid"))
        refuse_foreign(raw, kind)
        refuse_look_alikes(raw, KNOWN)
        return raw, validate(kind, raw)

    raw, body = await read_fields(request, state.limits.body_bytes, read)
    identity = f"vote_{secrets.token_hex(14)}"
    if isinstance(body, SamplesVoteBody):
        work = _over_given(identity, state, raw, body)
    else:
        work = _over_drawn(identity, state, raw, body, arrived, _owner(request))
    vote = await while_connected(request.receive, _stored(request, identity, work))
    return await _shown(vote)


@router.get("/v1/votes/{vote_id}", **operation("A stored vote as it stands", 404))
async def read(request: Request, vote_id: str) -> Response:
    """What the verdicts so far have made of it."""
    return await _shown(_find(request, vote_id))


@router.post("/v1/votes/{vote_id}/validate", **operation("Say what is right", 404, body=VerdictBody))
async def validate_vote(request: Request, vote_id: str) -> Response:
    """Accept, reject or correct one of its clusters or tests."""
    state = state_of(request)

    def prepare(raw: dict[str, Any]) -> dict[str, Any]:
        suggest_request_id(request, raw.get("request_id") or raw.get("rid"))
        return raw

    _, body = await read_body_as(request, state.limits.body_bytes, VerdictBody, prepare)
    fields = body.model_dump(exclude_none=True, exclude=_OF_EVERY_REQUEST)
    verdict = read_verdict(fields, state.votes.clock(), _caller(request, body.user))
    vote = _find(request, vote_id)
    await while_connected(request.receive, say(verdict, vote, state))
    return await _shown(vote)


def _kind(raw: Mapping[str, Any]) -> type[Bodies]:
    """What a body is, by the field that says what is voted on."""
    if raw.get("stream"):
        refuse("votes that are stored are not streamed: 'stream' must be false", "stream")
    if raw.get("messages") is not None and raw.get("prompt") is not None:
        refuse(ONE_OF, "prompt")
    if raw.get("samples_data") is not None:
        return SamplesVoteBody
    if raw.get("prompt") is not None:
        return CompletionVoteBody
    if raw.get("messages") is None:
        refuse(ONE_OF, "messages")
    return ChatVoteBody


async def _over_drawn(
    identity: str,
    state: ServerState,
    raw: Mapping[str, Any],
    body: ChatVoteBody | CompletionVoteBody,
    arrived: float,
    owner: str,
) -> Found:
    answer: ChatAnswer | CompletionAnswer
    if isinstance(body, ChatVoteBody):
        chat = checked(state, ChatVoteBody, raw, body, arrived, owner)
        _check(body, chat.vote, state)
        answer = await chat_answer(chat)
    else:
        completion = checked(state, CompletionVoteBody, raw, body, arrived, owner)
        _check(body, completion.vote, state)
        answer = await completion_answer(completion)
    folded = await fold(answer.plan, run(answer.plan.job, state.metrics))
    held = folded.votes[0]
    assert isinstance(held, Held)

    def content() -> bytes:
        whole = answer.whole(folded)
        whole["drafthouse"]["voting"] = {"id": identity, **whole["drafthouse"]["voting"]}
        return dumps_in_parts(whole)

    response = await offload(folded.listed, content)
    return Found(held, answer.plan.model, folded.usage(), response, body.code)


def _check(body: ChatVoteBody | CompletionVoteBody, vote: VoteRequest | None, state: ServerState) -> None:
    """What stored votes exclude."""
    assert vote is not None
    prompt = body.prompt if isinstance(body, CompletionVoteBody) else ""
    if isinstance(prompt, list) and not isinstance(prompt[0], int) and len(prompt) > 1:
        refuse("a stored vote is about one prompt", "prompt")
    if body.code is not None:
        check_code(body.code, vote, None, state.code_executor)


async def _over_given(identity: str, state: ServerState, raw: Mapping[str, Any], body: SamplesVoteBody) -> Found:
    log_unknown(raw, KNOWN, state.logged_names)
    model = None
    if body.model is not None:
        model, preset = state.find(body.model)
        if preset is not None:  # little of it applies: nothing is drawn
            body = validate(SamplesVoteBody, merged(raw, model.presets[preset]))
    given = await asyncio.to_thread(read_given, body, state)  # records may be many and long
    if body.code is not None:
        check_code(body.code, given.vote, len(given.samples), state.code_executor)
    problem = Problem(body.prompt or "") if body.messages is None else conversation(body.messages)
    origin = Origin(identity, body.seed or 0, body.priority or 0, body.cache_salt or "")
    held = await hold_given(given, problem, state, model, origin)
    read = Tokens(held.tokens["prompt"], held.tokens["completion"])
    passes = None
    if body.code is not None and body.code.passes is not None:
        passes = dict(zip(given.paths, body.code.passes, strict=True))
    return Found(held, body.model, usage(read, 0), code=body.code, passes=passes)


async def _stored(request: Request, identity: str, work: Awaitable[Found]) -> StoredVote:
    state = state_of(request)
    found = await work
    session = await session_of(found.held, found.code, found.passes, state)
    now = state.votes.clock()
    vote = StoredVote(
        id=identity,
        owner=_owner(request),
        created=now,
        expires_at=now + state.votes.ttl_s,
        model=found.model,
        held=found.held,
        session=session,
        usage=found.usage,
        response=found.response,
        tests=() if found.code is None else tests_of(found.code),
    )
    state.votes.add(vote)
    return vote


def _find(request: Request, identity: str) -> StoredVote:
    return state_of(request).votes.find(identity, _owner(request))


def _owner(request: Request) -> str:
    return owner_of(request.headers.get("authorization"), state_of(request).api_keys)


def _caller(request: Request, user: str | None) -> str:
    """Who says something, for the log: never a key."""
    if user is not None:
        return f"user_{fingerprint(user.encode())}"
    owner = _owner(request)
    return f"key_{owner}" if owner else "anonymous"


async def _shown(vote: StoredVote) -> Response:
    return Response(await offload(vote.size, vote_body, vote), media_type="application/json")
