"""A traced forward pass without module overhead: the model's own operations as one straight function.

Small models spend most of a CPU step between operations, not in them. The model is traced once with symbolic
sizes, duplicate and constant work is removed, projections of one input become one product, and what is left is
written out as a plain Python function. It is used only after it has given the eager model's logits.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from engine.runners.torch.attention import Backend
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.marker import ATTEND, Marker
from engine.runners.torch.nodes import call, constant, value
from engine.runners.torch.program import Program, ReplayError
from engine.runners.torch.rewrites import rewrite

aten = torch.ops.aten

_COPIED = 4_000_000  # elements of a tied head that may be copied


def build(model: nn.Module, layers: list[LayerSpec], backend: Backend) -> Program:
    """Trace, simplify and emit. Raises ReplayError when the graph holds anything this does not understand."""
    marker = Marker(layers)
    device = next(model.parameters()).device

    def forward(ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        return model(
            input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=rows, step=marker
        ).logits

    example = (torch.arange(7, device=device), torch.arange(7, device=device), torch.arange(5, device=device))
    try:
        with torch.no_grad(), _quiet():
            traced = make_fx(forward, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)
    except Exception as error:  # tracing runs arbitrary upstream code; not being traceable is no fault
        raise ReplayError(f"{type(error).__name__}: {error}") from error
    constants = _constants(traced)
    graph = traced.graph
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            raise ReplayError(f"in-place operation {node.target}")
    _drop_unused(graph)
    _fold_views_of_constants(graph, constants)
    _share_equal_nodes(graph)
    _drop_neutral_products(graph)
    _collapse_views(graph)
    _share_equal_nodes(graph)
    _merge_projections(graph, constants)
    rewrite(graph, constants)
    _share_equal_nodes(graph)
    _drop_unused(graph)
    for node in graph.nodes:  # a slice of a joined product cannot always be viewed; reshape copies where it must
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
    return Program(graph, constants, backend)


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch logs a stack trace for an operation it cannot trace; the ReplayError says all there is to say."""
    noisy = logging.getLogger("torch._subclasses.fake_tensor")
    level = noisy.level
    noisy.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        noisy.setLevel(level)


def _constants(traced: GraphModule) -> dict[str, Tensor]:
    return {
        node.target: operator.attrgetter(node.target)(traced) for node in traced.graph.nodes if node.op == "get_attr"
    }


def _drop_unused(graph: Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _fold_views_of_constants(graph: Graph, constants: dict[str, Tensor]) -> None:
    views = {aten.t.default, aten.transpose.int, aten.permute.default, aten.unsqueeze.default}
    for node in list(graph.nodes):
        if node.target in views and isinstance(node.args[0], Node) and node.args[0].op == "get_attr":
            name = f"folded_{node.name}"
            constants[name] = node.target(constants[node.args[0].target].detach(), *node.args[1:])
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.create_node("get_attr", name))
            graph.erase_node(node)


def _share_equal_nodes(graph: Graph) -> None:
    """Common subexpressions: nothing in the graph is random or writes, so equal calls are equal values."""
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr") or node.target is ATTEND:
            continue
        key = (node.op, node.target, repr(node.args), repr(sorted(node.kwargs.items())))
        if node.target is aten.sym_size.int:  # equal sizes of whatever tensors
            key = (node.op, node.target, value(node).node.expr)
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _drop_neutral_products(graph: Graph) -> None:
    for node in list(graph.nodes):
        if node.target is aten.mul.Tensor and isinstance(node.args[1], float) and node.args[1] == 1.0:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _collapse_views(graph: Graph) -> None:
    views = {aten.view.default, aten._unsafe_view.default}
    for node in list(graph.nodes):
        while node.target in views and isinstance(node.args[0], Node) and node.args[0].target in views:
            node.args = (node.args[0].args[0], *node.args[1:])
    _drop_unused(graph)


def _merge_projections(graph: Graph, constants: dict[str, Tensor]) -> None:
    """Products of one input with several constant matrices become one product that is split afterwards.

    Joined matrices are stored [inputs, outputs], which the CPU library multiplies up to 1.7 times faster for a few
    rows than a transposed view. The parameters are re-pointed at slices of them, so they cost no memory; only a
    small head that shares its matrix with the embedding is copied.
    """
    embedded = {id(_owner(constants[n.args[0].target])) for n in graph.nodes if n.target is aten.embedding.default}
    by_input: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node.target is aten.mm.default and _is_linear(node.args[1], constants):
            by_input.setdefault(node.args[0], []).append(node)
    for source, products in by_input.items():
        weights = [constants[product.args[1].target] for product in products]  # each [inputs, outputs]
        owners = [_owner(weight) for weight in weights]
        shared = any(id(owner) in embedded for owner in owners)
        if len({id(owner) for owner in owners}) < len(owners) or (shared and sum(w.numel() for w in weights) > _COPIED):
            continue
        joined = torch.cat(weights, 1).contiguous()
        sizes = [weight.shape[1] for weight in weights]
        if not shared:
            for owner, columns in zip(owners, joined.split(sizes, 1), strict=True):
                owner.data = columns.t()
        with graph.inserting_before(products[0]):
            matrix = constant(graph, constants, f"joined_{products[0].name}", joined)
            product = call(graph, aten.mm.default, source, matrix)
            if len(products) == 1:
                pieces = [product]
            else:
                split = call(graph, aten.split_with_sizes.default, product, sizes, 1)
                pieces = [call(graph, operator.getitem, split, i) for i in range(len(products))]
        for old, piece in zip(products, pieces, strict=True):
            old.replace_all_uses_with(piece)
            graph.erase_node(old)


def _owner(weight: Tensor) -> Tensor:
    """The parameter a folded transpose looks at."""
    return weight if weight._base is None else weight._base


def _is_linear(node: Any, constants: dict[str, Tensor]) -> bool:
    return isinstance(node, Node) and node.op == "get_attr" and constants[node.target].t().is_contiguous()
