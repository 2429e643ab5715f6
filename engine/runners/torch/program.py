"""Runs a simplified graph of the forward pass: as TorchScript if that can express it, else as one Python function."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from engine.runners.torch.attention_cpu import CpuAttention
from engine.runners.torch.marker import ATTEND
from engine.runners.torch.script import Script, ScriptError

log = logging.getLogger(__name__)


class ReplayError(Exception):
    """The model cannot be replayed; the eager path serves it."""


class Program:
    """(input_ids [T], positions [T], rows [R]) -> logits [1, R, V] of the step the backend is prepared for."""

    def __init__(self, graph: Graph, constants: dict[str, Tensor], backend: CpuAttention) -> None:
        nodes = list(graph.nodes)
        if unknown := {node.op for node in nodes} - {"placeholder", "get_attr", "call_function", "output"}:
            raise ReplayError(f"{', '.join(sorted(unknown))} in the traced graph")
        self._backend = backend
        held = {node.name: constants[node.target].detach() for node in nodes if node.op == "get_attr"}
        self._plain = _python(nodes, held, backend)
        self._inputs = [node.name for node in nodes if node.op == "placeholder"]
        self.script: Script | None = None
        try:
            self.script = Script(nodes, held, backend.pool)
        except ScriptError as error:
            log.info("the forward pass runs in Python: %s", error)

    def __call__(self, ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        if self.script is None:
            return self._plain(ids, positions, rows)
        plans = self._backend.lane_plans()
        if plans is not None:
            return self.script.whole(ids, positions, rows, *plans)
        return self.piecewise(ids, positions, rows)

    def piecewise(self, ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """As `__call__`, of a program with a script: attention is called from Python."""
        assert self.script is not None
        values = dict(zip(self._inputs, (ids, positions, rows), strict=True))
        for segment in self.script.segments:
            results = segment.run(*[values[name] for name in segment.inputs])
            values.update(zip(segment.outputs, results, strict=True))
            if segment.attend is not None:
                name, layer, query, key, value = segment.attend
                values[name] = self._backend.attend(layer, values[query], values[key], values[value])
        return values[segment.outputs[0]]


def _python(nodes: list[Node], constants: dict[str, Tensor], backend: CpuAttention) -> Callable[..., Tensor]:
    """One function of the graph, every operation and constant bound to a local name."""
    bound: dict[str, Any] = {"call_attention": backend.attend}
    inputs = [node.name for node in nodes if node.op == "placeholder"]
    body = [node for node in nodes if node.op == "call_function"]
    (result,) = next(node for node in nodes if node.op == "output").all_input_nodes
    last_use: dict[Node, Node] = {used: node for node in body for used in node.all_input_nodes}
    lines = []
    for node in body:
        arguments = [_text(a, bound, constants) for a in node.args]
        arguments += [f"{k}={_text(v, bound, constants)}" for k, v in node.kwargs.items()]
        if node.target is ATTEND:
            query, key, value, layer, _ = arguments
            lines.append(f"{node.name} = call_attention({layer}, {query}, {key}, {value})")
        else:
            name = f"op_{node.target.__name__.replace('.', '_')}"
            bound[name] = node.target._op if isinstance(node.target, torch._ops.OpOverload) else node.target
            lines.append(f"{node.name} = {name}({', '.join(arguments)})")
        dead = [n.name for n in node.all_input_nodes if last_use[n] is node and n.op == "call_function"]
        dead = [name for name in dead if name != result.name]
        if dead:
            lines.append(f"del {', '.join(dead)}")
    lines.append(f"return {result.name}")
    parameters = ", ".join([*inputs, "*", *(f"{key}={key}" for key in bound)])
    source = f"def program({parameters}):\n    " + "\n    ".join(lines) + "\n"
    scope: dict[str, Any] = {**bound, "__name__": "replayed"}
    exec(compile(source, "<replayed>", "exec"), scope)
    function: Callable[..., Tensor] = scope["program"]
    return function


def _text(argument: Any, bound: dict[str, Any], constants: dict[str, Tensor]) -> str:
    if isinstance(argument, Node):
        if argument.name in constants:
            bound[argument.name] = constants[argument.name]
        return argument.name
    if isinstance(argument, (list, tuple)):
        return "[" + ", ".join(_text(item, bound, constants) for item in argument) + "]"
    if isinstance(argument, float) and argument in (float("inf"), float("-inf")):
        return f"float('{argument}')"
    if isinstance(argument, (int, float, bool, str)) or argument is None:
        return repr(argument)
    name = "const_" + "".join(c if c.isalnum() else "_" for c in str(argument))  # dtypes, devices, layouts
    bound[name] = argument
    return name
