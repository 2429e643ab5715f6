"""Runs a simplified graph of the forward pass: as one Python function for any size, or, for decode sizes that
recur, as TorchScript segments between the attention calls, which skips Python for every other operation.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from engine.runners.torch.attention import Backend
from engine.runners.torch.marker import ATTEND

log = logging.getLogger(__name__)
LARGEST_SCRIPTED = 64  # rows; beyond, operations are long enough to hide the time between them
SCRIPT_AFTER = 24  # steps of one size; tracing takes as long as some dozens of steps


class ReplayError(Exception):
    """The model cannot be replayed; the eager path serves it."""


class Program:
    """(input_ids [T], positions [T], rows [R]) -> logits [1, R, V]; the backend is called once per layer."""

    def __init__(self, graph: Graph, constants: dict[str, Tensor], backend: Backend) -> None:
        self._nodes = list(graph.nodes)
        self._backend = backend
        self._inputs = [node for node in self._nodes if node.op == "placeholder"]
        if unknown := {node.op for node in self._nodes} - {"placeholder", "get_attr", "call_function", "output"}:
            raise ReplayError(f"{', '.join(sorted(unknown))} in the traced graph")
        self._constants = {node.name: constants[node.target].detach() for node in self._nodes if node.op == "get_attr"}
        body = [node for node in self._nodes if node.op == "call_function"]
        self._plain = self._function("program", body, self._inputs, self._result(), {})
        self.script_after = SCRIPT_AFTER
        self._seen: Counter[int] = Counter()  # steps by rows
        self._scripted: dict[int, list[_Segment]] = {}  # by rows; empty where TorchScript failed

    def __call__(self, ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        segments = self._segments(ids, positions, rows)
        if not segments:
            return self._plain(ids, positions, rows)
        return self._run(segments, ids, positions, rows)

    def _run(self, segments: list[_Segment], ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        values = dict(zip((node.name for node in self._inputs), (ids, positions, rows), strict=True))
        for segment in segments:
            results = segment.run(*[values[name] for name in segment.inputs])
            values.update(zip(segment.outputs, results, strict=True))
            if segment.attend is not None:
                name, layer, query, key, value = segment.attend
                values[name] = self._backend.attend(layer, values[query], values[key], values[value])
        return values[segments[-1].outputs[0]]

    @property
    def scripted_sizes(self) -> set[int]:
        """Rows of the steps that run without Python between attention calls."""
        return {size for size, segments in self._scripted.items() if segments}

    def _segments(self, ids: Tensor, positions: Tensor, rows: Tensor) -> list[_Segment]:
        """The scripted form for these sizes, made once they have recurred often enough; empty: there is none."""
        size = len(ids)
        if size in self._scripted:
            return self._scripted[size] if len(rows) == size else []
        if size > LARGEST_SCRIPTED or len(rows) != size:
            return []
        self._seen[size] += 1
        if self._seen[size] <= self.script_after:
            return []
        segments = self._script(ids, positions, rows)
        if segments and not torch.allclose(
            self._run(segments, ids, positions, rows), self._plain(ids, positions, rows), rtol=1e-4, atol=1e-4
        ):
            log.warning("steps of %d rows are not scripted: their logits differ", size)
            segments = []
        self._scripted[size] = segments
        return segments

    def _result(self) -> list[Node]:
        return list(next(node for node in self._nodes if node.op == "output").all_input_nodes)

    def _script(self, ids: Tensor, positions: Tensor, rows: Tensor) -> list[_Segment]:
        """TorchScript of every stretch between attention calls for exactly these sizes; empty if that fails.

        Runs the step as it traces, so it must be called inside one.
        """
        sizes = self._sizes(len(ids), len(rows))
        values: dict[str, Tensor] = dict(zip((n.name for n in self._inputs), (ids, positions, rows), strict=True))
        segments: list[_Segment] = []
        try:
            for segment in self._cut(sizes):
                example = tuple(values[name] for name in segment.inputs)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    segment.run = torch.jit.trace(segment.run, example, check_trace=False)
                values.update(zip(segment.outputs, segment.run(*example), strict=True))
                if segment.attend is not None:
                    name, layer, query, key, value = segment.attend
                    values[name] = self._backend.attend(layer, values[query], values[key], values[value])
                segments.append(segment)
        except Exception as error:  # whatever TorchScript cannot express stays in Python
            log.info("steps of %d rows are not scripted: %s", len(ids), error)
            return []
        return segments

    def _sizes(self, tokens: int, rows: int) -> dict[str, int]:
        """The value of every symbolic size for these input sizes, by node name."""
        symbols = {}
        for node, size in ((self._inputs[0], tokens), (self._inputs[2], rows)):
            symbols[node.meta["val"].shape[0].node.expr] = size
        return {
            node.name: int(node.meta["val"].node.expr.subs(symbols))
            for node in self._nodes
            if isinstance(node.meta.get("val"), torch.SymInt)
        }

    def _cut(self, sizes: dict[str, int]) -> list[_Segment]:
        """The graph between attention calls, with all sizes written in as numbers."""
        stretches: list[tuple[list[Node], Node | None]] = [([], None)]
        for node in self._nodes:
            if node.op != "call_function" or node.name in sizes:
                continue
            if node.target is ATTEND:
                stretches[-1] = (stretches[-1][0], node)
                stretches.append(([], None))
            else:
                stretches[-1][0].append(node)
        segments = []
        available = {node.name for node in self._inputs}
        for index, (body, attend) in enumerate(stretches):
            own = {node.name for node in body}
            later = [n for nodes, call in stretches[index + 1 :] for n in (*nodes, *([call] if call else []))]
            needed = {n.name for node in (*later, *([attend] if attend else [])) for n in node.all_input_nodes}
            outputs = [node for node in body if node.name in needed]
            if attend is None:
                outputs = self._result()
            used = dict.fromkeys(n for node in (*body, *outputs) for n in node.all_input_nodes)
            inputs = [n for n in used if n.name in available and n.name not in own]
            if attend is None and outputs[0].name not in own:
                raise ReplayError("the last segment is empty")
            call = None
            if attend is not None:
                query, key, value, layer, _ = attend.args
                call = (attend.name, int(layer), query.name, key.name, value.name)
                available.add(attend.name)
            available |= {node.name for node in outputs}
            run = self._function(f"segment_{index}", body, inputs, outputs, sizes, as_tuple=True)
            segments.append(_Segment(run, [n.name for n in inputs], [n.name for n in outputs], call))
        return segments

    def _function(
        self,
        name: str,
        body: list[Node],
        inputs: list[Node],
        outputs: list[Node],
        sizes: dict[str, int],
        as_tuple: bool = False,
    ) -> Callable[..., Any]:
        """Python of a stretch of nodes, every operation and constant bound to a local name."""
        bound: dict[str, Any] = {}
        last_use: dict[Node, Node] = {used: node for node in body for used in node.all_input_nodes}
        lines = []
        for node in body:
            arguments = [self._text(a, bound, sizes) for a in node.args]
            arguments += [f"{k}={self._text(v, bound, sizes)}" for k, v in node.kwargs.items()]
            if node.target is ATTEND:
                query, key, value, layer, _ = arguments
                bound["call_attention"] = self._backend.attend
                lines.append(f"{node.name} = call_attention({layer}, {query}, {key}, {value})")
            else:
                lines.append(f"{node.name} = {self._operation(node, bound)}({', '.join(arguments)})")
            dead = [n.name for n in node.all_input_nodes if last_use[n] is node and n.op == "call_function"]
            dead = [n for n in dead if n not in sizes and n not in {o.name for o in outputs}]
            if dead and not as_tuple:
                lines.append(f"del {', '.join(dead)}")
        names = ", ".join(node.name for node in outputs)
        lines.append(f"return ({names},)" if as_tuple else f"return {names}")
        parameters = ", ".join([node.name for node in inputs] + ["*"] + [f"{key}={key}" for key in bound])
        parameters = parameters if bound else parameters.removesuffix(", *")
        source = f"def {name}({parameters}):\n    " + "\n    ".join(lines) + "\n"
        scope: dict[str, Any] = {**bound, "__name__": "replayed"}
        exec(compile(source, f"<replayed {name}>", "exec"), scope)
        function: Callable[..., Any] = scope[name]
        return function

    def _operation(self, node: Node, bound: dict[str, Any]) -> str:
        target = node.target._op if isinstance(node.target, torch._ops.OpOverload) else node.target
        name = f"op_{node.target.__name__.replace('.', '_')}"
        bound[name] = target
        return name

    def _text(self, argument: Any, bound: dict[str, Any], sizes: dict[str, int]) -> str:
        if isinstance(argument, Node):
            if argument.name in sizes:
                return str(sizes[argument.name])
            if argument.name in self._constants:
                bound[argument.name] = self._constants[argument.name]
            return argument.name
        if isinstance(argument, (list, tuple)):
            return "[" + ", ".join(self._text(item, bound, sizes) for item in argument) + "]"
        if isinstance(argument, float) and argument in (float("inf"), float("-inf")):
            return f"float('{argument}')"
        if isinstance(argument, (int, float, bool, str)) or argument is None:
            return repr(argument)
        name = "const_" + "".join(c if c.isalnum() else "_" for c in str(argument))  # dtypes, devices, layouts
        bound[name] = argument
        return name


class _Segment:
    """A stretch of operations and the attention call that follows it."""

    def __init__(
        self,
        run: Callable[..., Any],
        inputs: list[str],
        outputs: list[str],
        attend: tuple[str, int, str, str, str] | None,
    ) -> None:
        self.run, self.inputs, self.outputs, self.attend = run, inputs, outputs, attend
