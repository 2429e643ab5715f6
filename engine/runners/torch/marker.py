"""Marks where a traced forward pass calls attention: one opaque operation per layer, never executed."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.runners.torch.layers import LayerSpec

_LIBRARY = torch.library.Library("drafthouse", "FRAGMENT")
_LIBRARY.define("attend(Tensor query, Tensor key, Tensor value, int layer, int value_size) -> Tensor")


@torch.library.register_fake("drafthouse::attend", lib=_LIBRARY)
def _(query: Tensor, key: Tensor, value: Tensor, layer: int, value_size: int) -> Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value_size)


ATTEND = torch.ops.drafthouse.attend.default


class Marker:
    """A backend for tracing: leaves one opaque operation per layer in the graph."""

    def __init__(self, layers: list[LayerSpec]) -> None:
        self._layers = layers

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return ATTEND(query, key, value, layer, self._layers[layer].value_size)
