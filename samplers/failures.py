"""Keeps a fault of one sampler to the rows that use it: what it raises and what it must not return."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.memories import Slots

log = logging.getLogger(__name__)
CONSTRAINT_UNSATISFIABLE = "constraint_unsatisfiable"  # the request's own masks leave nothing to draw
Failures = dict[int, tuple[str, str]]  # row -> (code, message)


def guarded(call: Callable[[], Tensor], name: str, members: Slots, failures: Failures) -> Tensor | None:
    """The call's result; an exception fails its rows only."""
    try:
        return call()
    except Exception:
        log.exception("sampler '%s' failed", name)
        failures.update(dict.fromkeys(members.tolist(), failed(name)))
        return None


def rows_of(shaped: Any, source: Tensor) -> Tensor:
    """What a stage returned, if it is what a stage has to return."""
    if not isinstance(shaped, Tensor):
        raise TypeError(f"a stage returned {type(shaped).__name__}")
    if shaped.shape != source.shape or shaped.dtype != source.dtype or shaped.device != source.device:
        raise TypeError(f"a stage returned {shaped.dtype} {tuple(shaped.shape)} on {shaped.device}")
    return shaped.contiguous()


def tokens_of(picked: Any, source: Tensor) -> Tensor:
    """What a draw returned, if it is what a draw has to return."""
    if not isinstance(picked, Tensor):
        raise TypeError(f"a draw returned {type(picked).__name__}")
    if picked.shape != source.shape[:1] or picked.dtype != torch.int64 or picked.device != source.device:
        raise TypeError(f"a draw returned {picked.dtype} {tuple(picked.shape)} on {picked.device}")
    return picked


def failed(name: str) -> tuple[str, str]:
    return "internal_error", f"sampler '{name}' failed"


def emptied(peak: float, raw: Tensor) -> tuple[str, str]:
    """Why nothing can be drawn from a row whose largest processed logit is `peak`. raw: [V]."""
    if peak == -np.inf:
        return CONSTRAINT_UNSATISFIABLE, "the request's masks leave no token to draw"
    if bool((raw < torch.inf).all()):
        return "internal_error", "a sampler made a logit that is not a number"
    return "internal_error", "the model gave a logit that is not a number"
