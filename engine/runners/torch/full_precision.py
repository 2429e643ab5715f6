"""Runs a half-precision model in float32 for a few small forwards, without a second copy of it.

The parameters of a decoder layer exist in float32 only while that layer runs; those outside the layers (embedding,
final norm, head) for the whole time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_HALF = (torch.bfloat16, torch.float16)


def can_be_widened(model: nn.Module) -> bool:
    """False for quantised weights: their own kernels expect the dtype the model was loaded in."""
    return all(parameter.dtype in (*_HALF, torch.float32) for parameter in model.parameters())


@contextmanager
def in_float32(model: nn.Module, layers: int) -> Iterator[None]:
    """`model` computes in float32; its own tensors come back untouched. layers: how many decoder layers it has."""
    blocks = [block for group in _layer_lists(model, layers) for block in group]
    inside = {id(module) for block in blocks for module in block.modules()}
    with ExitStack() as everything:
        everything.enter_context(_widened([module for module in model.modules() if id(module) not in inside]))
        for block in blocks:
            for handle in _while_it_runs(block):
                everything.callback(handle.remove)
        yield


def _layer_lists(model: nn.Module, layers: int) -> list[nn.ModuleList]:
    """Lists with one module per decoder layer; not those within another."""
    found: list[nn.ModuleList] = []
    for module in model.modules():
        nested = any(module is inner for group in found for inner in group.modules())
        if isinstance(module, nn.ModuleList) and len(module) == layers and not nested:
            found.append(module)
    return found


def _while_it_runs(block: nn.Module) -> list[Any]:
    """Hooks that widen `block` for each of its calls, failed ones included."""
    running: list[ExitStack] = []

    def before(*_: Any) -> None:
        running.append(ExitStack())
        running[-1].enter_context(_widened(list(block.modules())))

    def after(*_: Any) -> None:
        running.pop().close()

    return [block.register_forward_pre_hook(before), block.register_forward_hook(after, always_call=True)]


@contextmanager
def _widened(modules: list[nn.Module]) -> Iterator[None]:
    """The modules' own half-precision tensors are float32; tensors that several share stay shared."""
    wide: dict[int, Tensor] = {}
    kept: list[tuple[dict[str, Any], str, Tensor]] = []
    for module in modules:
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None and tensor.dtype in _HALF:
                    kept.append((table, name, tensor))
                    table[name] = wide.setdefault(id(tensor), tensor.float())
    try:
        yield
    finally:
        for table, name, tensor in kept:
            table[name] = tensor
