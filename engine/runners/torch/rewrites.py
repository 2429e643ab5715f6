"""Equal but cheaper forms of two patterns that every decoder of this family repeats: RMS norm and rotary position.

On a CPU the cost of a decode step's small operations is their number. Each rewrite replaces a pattern only where
all of it matches; anything else stays as the model wrote it.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node

from engine.runners.torch.nodes import call, constant, is_call, value

aten = torch.ops.aten


def rewrite(graph: Graph, constants: dict[str, Tensor]) -> None:
    """Apply every rewrite in place; new constants are added to `constants`."""
    for node in list(graph.nodes):
        if node.target is aten.add.Tensor:
            _mean_square(graph, constants, node)
    rotations = [found for node in graph.nodes if (found := _rotation(node)) is not None]
    for joined in _neighbours(rotations):
        _rotate(graph, constants, joined)


def _mean_square(graph: Graph, constants: dict[str, Tensor], total: Node) -> None:
    """mean(x^2) + eps as eps + |x|^2 / d: one reduction instead of a square, a sum, a division and a copy."""
    mean, eps = total.args
    if not (is_call(mean, aten.mean.dim, users=1) and isinstance(eps, float)):
        return
    square, axes, *keep = mean.args
    if axes != [-1] or keep != [True] or mean.kwargs or not is_call(square, aten.pow.Tensor_Scalar, users=1):
        return
    x, power = square.args
    size = value(x).shape[-1]
    if power != 2 or value(x).dtype != torch.float32 or not isinstance(size, int):
        return
    with graph.inserting_before(total):
        start = constant(graph, constants, f"eps_{eps}", torch.tensor([eps]))
        norm = call(graph, aten.linalg_vector_norm.default, x, 2, [-1], True)
        new = call(graph, aten.addcmul.default, start, norm, norm, value=1.0 / size)
    total.replace_all_uses_with(new)


class _Rotation(NamedTuple):
    """t cos + rotate_half(t) sin, with t = rows transposed to [1, heads, T, D]."""

    result: Node
    rows: Node  # [1, T, heads, D]
    cos: Node
    sin: Node
    half: int


def _rotation(total: Node) -> _Rotation | None:
    if total.target is not aten.add.Tensor or not all(is_call(a, aten.mul.Tensor, users=1) for a in total.args):
        return None
    (t, cos), (turned, sin) = total.args[0].args, total.args[1].args
    if not (is_call(t, aten.transpose.int) and t.args[1:] == (1, 2) and is_call(turned, aten.cat.default, users=1)):
        return None
    if not (isinstance(cos, Node) and isinstance(sin, Node) and turned.args[1] in (-1, 3) and len(turned.args[0]) == 2):
        return None
    negated, first = turned.args[0]
    if not (is_call(negated, aten.neg.default, users=1) and is_call(first, aten.slice.Tensor)):
        return None
    second, size = negated.args[0], value(t).shape[-1]
    if not (is_call(second, aten.slice.Tensor) and isinstance(size, int) and size % 2 == 0):
        return None
    if first.args != (t, 3, 0, size // 2) or second.args[:3] != (t, 3, size // 2) or second.args[3] < size:
        return None
    if len(value(cos).shape) != 4 or value(cos).shape[-1] != size or value(sin).shape != value(cos).shape:
        return None
    return _Rotation(total, t.args[0], cos, sin, size // 2)


def _neighbours(rotations: list[_Rotation]) -> list[list[_Rotation]]:
    """Rotations by one angle of the first pieces of one product (queries and keys) together; others alone."""
    groups: dict[Any, list[_Rotation]] = {}
    for one in rotations:
        piece = _piece(one.rows)
        key = (piece[0], one.cos, one.sin, one.half) if piece is not None else one.result
        groups.setdefault(key, []).append(one)
    joined = []
    for members in groups.values():
        pieces = [_piece(one.rows) for one in members]
        if len(members) > 1 and [piece[1] for piece in pieces if piece] == list(range(len(members))):
            joined.append(members)
        else:
            joined += [[one] for one in members]
    return joined


def _piece(rows: Node) -> tuple[Node, int] | None:
    """(split node, index) when `rows` is a reshaped piece of a split product."""
    if not is_call(rows, aten.view.default) or not is_call(rows.args[0], operator.getitem):
        return None
    split, index = rows.args[0].args
    return (split, index) if is_call(split, aten.split_with_sizes.default) and split.args[2] == 1 else None


def _rotate(graph: Graph, constants: dict[str, Tensor], members: list[_Rotation]) -> None:
    """t cos + roll(t, half) (sin with its first half negated), in the order of rows, and for all members at once."""
    first = members[0]  # in the graph's order: all it needs is there before its result
    rows, half = first.rows, first.half
    with graph.inserting_before(first.result):
        dtype = value(first.sin).dtype  # an fp32 factor would promote half-precision queries and keys
        signs = torch.cat([-torch.ones(half), torch.ones(half)]).to(dtype)
        cos = call(graph, aten.transpose.int, first.cos, 1, 2)
        sin = call(graph, aten.transpose.int, first.sin, 1, 2)
        sin = call(graph, aten.mul.Tensor, sin, constant(graph, constants, f"signs_{half}_{dtype}", signs))
        if len(members) > 1:
            (split, _), shape = _piece(rows), rows.args[1]
            both = call(graph, aten.slice.Tensor, split.args[0], 1, 0, sum(split.args[1][: len(members)]))
            rows = call(graph, aten.view.default, both, [*shape[:2], -1, 2 * half])
        rolled = call(graph, aten.roll.default, rows, [half], [3])
        straight = call(graph, aten.mul.Tensor, rows, cos)
        if dtype == torch.float32:
            turned = call(graph, aten.addcmul.default, straight, rolled, sin)
        else:  # addcmul would round once less than the model does
            turned = call(graph, aten.add.Tensor, straight, call(graph, aten.mul.Tensor, rolled, sin))
        at = 0
        for one in members:
            heads = value(one.rows).shape[2]
            mine = turned if len(members) == 1 else call(graph, aten.slice.Tensor, turned, 2, at, at + heads)
            at += heads
            one.result.replace_all_uses_with(call(graph, aten.transpose.int, mine, 1, 2))
