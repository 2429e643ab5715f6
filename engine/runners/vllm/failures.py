"""From what vLLM raises to what the server knows."""

from __future__ import annotations

import logging

from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError

from engine.runners.base import EngineFailed, Overloaded, RunnerError, Unsupported

log = logging.getLogger(__name__)
DEAD = "vLLM's engine has died"


def runner_error(error: Exception, request_id: str) -> RunnerError:
    """What a request ends with; logged if nobody has expected it. Call where the error is handled."""
    match error:
        case EngineDeadError():
            return EngineFailed(DEAD)
        case GracefulHTTPError():
            return Overloaded(error.message)
        case VLLMClientError():
            return Unsupported(str(error))
    log.error("request %s failed", request_id, exc_info=error)
    return EngineFailed(f"vLLM failed: {type(error).__name__}")
