"""New nodes of a traced graph that know their shape: helpers of the passes that rewrite it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import Graph, Node
from torch.fx.node import map_arg


def value(node: Node) -> Any:
    """What the node stands for: a fake tensor, a symbolic size, or a tuple of them."""
    return node.meta["val"]


def is_call(node: Any, target: Callable[..., Any], users: int | None = None) -> bool:
    """True for a call of `target` that has this many users (None: any number)."""
    return isinstance(node, Node) and node.target is target and users in (None, len(node.users))


def call(graph: Graph, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
    """A call at the graph's insertion point."""
    node = graph.call_function(target, args, kwargs)
    with enable_python_dispatcher():  # symbolic sizes stay symbolic inside composite operations
        node.meta["val"] = target(*map_arg(args, value), **map_arg(kwargs, value))
    return node


def constant(graph: Graph, constants: dict[str, Tensor], name: str, tensor: Tensor) -> Node:
    """Read a constant at the graph's insertion point; it is stored under `name` once."""
    kept = constants.setdefault(name, tensor)
    mode = next(value(node) for node in graph.nodes if node.op == "placeholder").fake_mode
    node = graph.create_node("get_attr", name)
    node.meta["val"] = mode.from_tensor(kept)
    return node
