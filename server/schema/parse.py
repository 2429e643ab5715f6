"""From bytes to a checked request body; every fault is an error object that names the field.

Knows JSON and pydantic, not what the fields mean.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from server.errors import ApiError, bad_request
from server.offload import offload
from server.schema.fields import Body

log = logging.getLogger(__name__)
T = TypeVar("T", bound=Body)
R = TypeVar("R")
MAX_LOGGED_NAMES = 1000

# A constraint under a name we do not know would otherwise give unconstrained text with status 200.
LOOK_ALIKE = re.compile(
    r"^(guided_|structured_|constrain|grammar|regex|ebnf|gbnf|lark|outlines|json|schema|format$|output_schema"
    r"|response_(schema|format_)|stop_regex|choices?$)",
    re.IGNORECASE,
)
CONSTRAINT_FIELDS = (
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "guided_whitespace_pattern", "guided_decoding_backend", "regex", "ebnf", "json_schema",
)  # fmt: skip


async def read_body_as(
    request: Request,
    limit_bytes: int,
    kind: type[T],
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: fields,
) -> tuple[dict[str, Any], T]:
    """The body as a JSON object that `prepare` may have changed, and as `kind`."""

    def work(fields: dict[str, Any]) -> tuple[dict[str, Any], T]:
        fields = prepare(fields)
        return fields, validate(kind, fields)

    return await read_fields(request, limit_bytes, work)


async def read_fields(request: Request, limit_bytes: int, work: Callable[[dict[str, Any]], R]) -> R:
    """What `work` makes of the body as a JSON object; a large one holds up nobody."""
    raw = await read_body(request, limit_bytes)
    return await offload(len(raw), lambda: work(parse_json(raw)))


async def read_body(request: Request, limit_bytes: int) -> bytes:
    too_large = ApiError(413, f"the request body is larger than {limit_bytes} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise too_large
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit_bytes:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


def parse_json(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise bad_request("the request body is not valid UTF-8", None, "invalid_json") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "number too long or nested too deeply"
        raise bad_request(f"the request body is not valid JSON: {reason}", None, "invalid_json") from None
    if not isinstance(body, dict):
        raise bad_request("the request body must be a JSON object", None, "invalid_json")
    if b"\\u" in raw:
        refuse_surrogates(body)
    return body


def refuse_surrogates(value: Any, inside: tuple[str | int, ...] = ()) -> None:
    """Half a UTF-16 pair is a legal JSON escape and no character; nothing after this could encode it."""
    pending: list[tuple[Any, tuple[str | int, ...]]] = [(value, inside)]
    while pending:
        item, path = pending.pop()
        if isinstance(item, str) and any("\ud800" <= char <= "\udfff" for char in item):
            where = f"'{dotted(path)}'" if path else "a key"
            raise bad_request(f"{where} contains an unpaired surrogate", dotted(path) or None)
        if isinstance(item, dict):
            pending += [(key, path) for key in item] + [(inner, (*path, key)) for key, inner in item.items()]
        elif isinstance(item, list):
            pending += [(inner, (*path, index)) for index, inner in enumerate(item)]


def validate(model: type[T], body: dict[str, Any]) -> T:
    """The body as `model`; the first violation, in field order, is the one reported."""
    try:
        return model.model_validate(body)
    except (ValidationError, RecursionError) as error:
        raise _to_bad_request(error, body) from None


def refuse_look_alikes(body: dict[str, Any], known: Iterable[str]) -> None:
    """400 for names that look like a constraint and are none of ours."""
    names = set(known)
    for name, value in body.items():
        if value is not None and name not in names and LOOK_ALIKE.match(name):
            near = difflib.get_close_matches(name.lower(), CONSTRAINT_FIELDS, 1, 0) or ["structured_outputs"]
            raise bad_request(
                f"unknown constraint field '{name:.100}'; the nearest supported field is '{near[0]}'",
                f"{name:.100}",
                "unknown_constraint_field",
            )


def log_unknown(body: Mapping[str, Any], known: Iterable[str], logged: set[str]) -> None:
    """Once per name and server."""
    for name in body.keys() - set(known) - logged:
        if len(logged) < MAX_LOGGED_NAMES:
            logged.add(name)
            log.info("ignoring unknown request field %.100r", name)


def dotted(path: Sequence[str | int]) -> str:
    """('messages', 0, 'content') -> 'messages[0].content'."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".").encode("utf-8", "replace").decode()


def _to_bad_request(error: ValidationError | RecursionError, body: Any) -> ApiError:
    if isinstance(error, RecursionError):
        return bad_request("the request body is nested too deeply", None, "invalid_json")
    faults = [(_walk(fault["loc"], fault["type"], body), fault["msg"]) for fault in error.errors(include_url=False)]
    first = faults[0][0][:1]
    path, message = max((f for f in faults if f[0][:1] == first), key=lambda f: len(f[0]))
    param = dotted(path)
    return bad_request(f"invalid '{param}': {message[:1].lower()}{message[1:]}", param or None)


def _walk(loc: Sequence[str | int], kind: str, body: Any) -> tuple[str | int, ...]:
    """The part of pydantic's location that is in the body: names of union members are not."""
    path: list[str | int] = []
    for at, part in enumerate(loc):
        member = isinstance(body, dict) and isinstance(part, str) and part in body
        if member or (isinstance(body, list) and isinstance(part, int) and part < len(body)):
            body = body[part]
        elif not (kind == "missing" and at == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path)
