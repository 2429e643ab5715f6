"""What a runner cannot do: requests that ask for it get a 400 that names the field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.runners.base import Capability, Runner
from server.errors import ApiError
from server.schema.common import GenerationBody
from server.speculation import wanted

# (field, whether a body asks for it, what it takes, what is missing)
_NEEDS: Sequence[tuple[str, Callable[[GenerationBody], Any], Capability, str]] = (
    ("return_sampler_trace", lambda body: body.return_sampler_trace, Capability.SAMPLER_TRACE, "traces are"),
    (
        "logprobs_mode",
        lambda body: body.logprobs_mode == "processed",
        Capability.PROCESSED_LOGPROBS,
        "log-probabilities after the samplers are",
    ),
    (
        "logprob_token_ids",
        lambda body: body.logprob_token_ids,
        Capability.LOGPROB_TOKEN_IDS,
        "log-probabilities of chosen tokens are",
    ),
    (
        "prompt_boundary",
        lambda body: body.prompt_boundary not in (None, "off"),
        Capability.LOGPROB_TOKEN_IDS,
        "writing the end of a prompt anew is",
    ),
    (
        "spec_decode",
        lambda body: isinstance(wanted(body.spec_decode), Mapping),
        Capability.DRAFTS,
        "speculation that a request describes is",
    ),
)


def unsupported(param: str, what: str, runner: Runner) -> ApiError:
    """The 400 for what the torch runner can do, if the model lets it."""
    elsewhere = " with this model" if runner.name == "torch" else "; the torch runner has it"
    message = f"'{param}': {what} not available on runner '{runner.name}'{elsewhere}"
    return ApiError(400, message, param, "unsupported_by_runner")


def check_runner(body: GenerationBody, runner: Runner) -> None:
    """Refuse the first field that the runner cannot honour."""
    for field, asks, capability, what in _NEEDS:
        if asks(body) and capability not in runner.capabilities:
            raise unsupported(field, what, runner)
