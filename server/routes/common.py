"""What the routes share: the state, JSON responses, and running a plan to its answer."""

from __future__ import annotations

from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from server.answers.fold import Folded, fold
from server.disconnect import EventStream, while_connected
from server.generate import Step, run
from server.jsontext import dumps, dumps_in_parts
from server.offload import offload
from server.sse import StreamedAnswer, event_bytes
from server.state import ServerState


class Answer(StreamedAnswer, Protocol):
    """An endpoint's answer in both forms."""

    def whole(self, folded: Folded) -> dict[str, Any]: ...


def state_of(request: Request) -> ServerState:
    state: ServerState = request.app.state.server
    return state


def json_response(body: Any) -> Response:
    return Response(dumps(body), media_type="application/json")


async def respond(request: Request, answer: Answer) -> Response:
    """Run the plan; stream it or give it whole. Errors before the first token are raised."""
    plan = answer.plan
    steps = run(plan.job, state_of(request).metrics)
    if not plan.stream:
        folded = await while_connected(request.receive, fold(plan, steps))
        content = await offload(folded.listed, lambda: dumps_in_parts(answer.whole(folded)))
        return Response(content, media_type="application/json")

    async def begin() -> Step:
        return await anext(steps)

    first = await while_connected(request.receive, begin())
    return EventStream(event_bytes(answer, first, steps), steps)
