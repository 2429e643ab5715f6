"""TorchScript of a simplified graph: one function per stretch between attention calls, and one for whole
steps of short spans.

The text is made once, for any number of rows. Operations that TorchScript lacks make `ScriptError`; the graph then
runs as plain Python.
"""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from engine.runners.torch.attention_script import attend_lanes  # read by the text of `whole`
from engine.runners.torch.cpu_plan import LanePlan
from engine.runners.torch.draft_script import draw, lanes_behind  # read by the text of `chains`
from engine.runners.torch.layers import kind_of
from engine.runners.torch.marker import ATTEND
from engine.runners.torch.pool import KvPool

_INFIX = {operator.mul: "*", operator.add: "+", operator.sub: "-", operator.floordiv: "//"}
_NUMBERS = itertools.count()


class ScriptError(Exception):
    """The graph cannot be written as TorchScript."""


class Script:
    """Compiled functions over `inputs`; they hold the constants and the pool's tensors by reference."""

    def __init__(self, nodes: list[Node], constants: dict[str, Tensor], pool: KvPool) -> None:
        """Raises ScriptError."""
        self._inputs = [node for node in nodes if node.op == "placeholder"]
        self._body = [node for node in nodes if node.op == "call_function"]
        self._result = list(next(node for node in nodes if node.op == "output").all_input_nodes)
        self._constants = {node: f"c_{node.name}" for node in nodes if node.op == "get_attr"}
        self._pool = pool
        self.kinds = list(dict.fromkeys(kind_of(spec) for spec in pool.layers))
        self.segments: list[Segment] = []
        holder = nn.Module()
        # modules of equal attributes share one type, and its methods: this attribute keeps two models apart
        holder.register_buffer(f"number_{next(_NUMBERS)}", torch.empty(0))
        for node, name in self._constants.items():
            holder.register_buffer(name, constants[node.name])
        for layer, (keys, values) in enumerate(zip(pool.keys, pool.values, strict=True)):
            holder.register_buffer(f"keys_{layer}", keys)
            holder.register_buffer(f"values_{layer}", values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript announces its successor
            self._module = torch.jit.script(holder)
            try:
                for index, (inputs, body, attend) in enumerate(self._stretches()):
                    self.segments.append(self._segment(f"segment_{index}", inputs, body, attend))
                self._run = self._whole()
            except (RuntimeError, KeyError, TypeError) as error:
                raise ScriptError(str(error).strip().splitlines()[0]) from error
        assert attend_lanes is not None

    def whole(self, ids: Tensor, positions: Tensor, rows: Tensor, slots: Tensor, plans: list[LanePlan]) -> Tensor:
        """Logits of a step of short spans. plans: one for each of `kinds`."""
        arguments = [part for plan in plans for part in (plan.covers, plan.lanes, plan.rows, plan.masks)]
        result: Tensor = self._run(ids, positions, rows, slots, *arguments)
        return result

    def chains(self) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        """A function that drafts chains: see `draft_chains`. Of a model whose layers are all of one kind. Raises
        ScriptError."""
        if len(self.kinds) != 1:
            raise ScriptError("layers of several kinds")
        try:
            self._define(_CHAINS[0], _CHAINS[1:])
        except RuntimeError as error:
            raise ScriptError(str(error).strip().splitlines()[0]) from error
        assert draw is not None and lanes_behind is not None
        function: Callable[..., tuple[Tensor, Tensor, Tensor]] = self._module.chains
        return function

    def _stretches(self) -> list[tuple[list[Node], list[Node], Node | None]]:
        """(inputs, body, attention call that follows) of each stretch; sizes are computed where they are used."""
        cuts: list[tuple[list[Node], Node | None]] = [([], None)]
        for node in self._body:
            if node.target is ATTEND:
                cuts[-1] = (cuts[-1][0], node)
                cuts.append(([], None))
            else:
                cuts[-1][0].append(node)
        stretches = []
        for body, attend in cuts:
            own = set(body)
            wanted = [*(a for node in body for a in node.all_input_nodes), *(() if attend else self._result)]
            inputs = [n for n in dict.fromkeys(wanted) if n not in own and n not in self._constants]
            stretches.append((inputs, body, attend))
        return stretches

    def _segment(self, name: str, inputs: list[Node], body: list[Node], attend: Node | None) -> Segment:
        after = self._body[self._body.index(attend) :] if attend is not None else []
        later = {used for node in after for used in node.all_input_nodes}
        outputs = [node for node in body if node in later] if attend is not None else self._result
        lines = [self._line(node) for node in body]
        lines.append(f"return ({', '.join(node.name for node in outputs)},)")
        given = ", ".join(f"{node.name}: {_type(node)}" for node in inputs)
        kinds = ", ".join(_type(node) for node in outputs)
        self._define(f"def {name}(self, {given}) -> Tuple[{kinds}]:", lines)
        call = None
        if attend is not None:
            query, key, value, layer, _ = attend.args
            call = (attend.name, int(layer), query.name, key.name, value.name)
        return Segment(getattr(self._module, name), [n.name for n in inputs], [n.name for n in outputs], call)

    def _whole(self) -> Callable[..., Tensor]:
        lines = []
        for node in self._body:
            if node.target is not ATTEND:
                lines.append(self._line(node))
                continue
            query, key, value, layer, _ = node.args
            spec = self._pool.layers[layer]
            k = self.kinds.index(kind_of(spec))
            plan = f"plan_covers_{k}, plan_lanes_{k}, plan_rows_{k}, plan_masks_{k}, {spec.scale!r}"
            lines.append(
                f"{node.name} = attend_lanes(self.keys_{layer}, self.values_{layer}, plan_slots, "
                f"{query.name}, {key.name}, {value.name}, {plan})"
            )
        given = [f"{node.name}: Tensor" for node in self._inputs] + ["plan_slots: Tensor"]
        for k in range(len(self.kinds)):
            given += [f"plan_covers_{k}: List[int]", f"plan_lanes_{k}: List[List[int]]"]
            given += [f"plan_rows_{k}: List[Tensor]", f"plan_masks_{k}: List[Tensor]"]
        lines.append(f"return {self._result[0].name}")
        self._define(f"def whole(self, {', '.join(given)}) -> Tensor:", lines)
        function: Callable[..., Tensor] = self._module.whole
        return function

    def _define(self, head: str, lines: list[str]) -> None:
        self._module.define("\n    ".join([head, *lines]) + "\n")

    def _line(self, node: Node) -> str:
        arguments = [self._text(a) for a in node.args] + [f"{k}={self._text(v)}" for k, v in node.kwargs.items()]
        if node.target is operator.getitem:
            return f"{node.name} = {arguments[0]}[{arguments[1]}]"
        if node.target is torch.ops.aten.sym_size.int:
            return f"{node.name} = {arguments[0]}.size({arguments[1]})"
        if node.target in _INFIX:
            return f"{node.name} = {f' {_INFIX[node.target]} '.join(arguments)}"
        if not isinstance(node.target, torch._ops.OpOverload):
            raise ScriptError(f"{node.target} in the graph")
        if node.target is torch.ops.aten.index.Tensor:
            arguments[1] = f"torch.jit.annotate(List[Optional[Tensor]], {arguments[1]})"
        name = node.target._schema.name.replace("::", ".")
        return f"{node.name} = torch.ops.{name}({', '.join(arguments)})"

    def _text(self, argument: Any) -> str:
        if isinstance(argument, Node):
            return f"self.{self._constants[argument]}" if argument in self._constants else argument.name
        if isinstance(argument, (list, tuple)):
            return "[" + ", ".join(self._text(item) for item in argument) + "]"
        if isinstance(argument, float) and argument in (float("inf"), float("-inf")):
            return f"float('{argument}')"
        if isinstance(argument, torch.device):
            return f"torch.device('{argument}')"
        if isinstance(argument, (int, float, bool, str, torch.dtype, torch.layout, torch.memory_format)):
            return str(argument) if not isinstance(argument, str) else repr(argument)
        if argument is None:
            return "None"
        raise ScriptError(f"{type(argument).__name__} in the graph")


# before, behind: [M, B] tokens in front of the roots that have to be computed as well, and their slots; of those that
# have not, the dummy page's; token, positions: [B] of the roots; logits: [B, V'] there, or empty: they are computed;
# slots: [D, B], the roots' first; lanes, rows, lengths, ends: of the roots' rows; bits: [D, B] or empty (the most
# probable tokens are taken); temperatures: [B, 1]; known: [V'] token ids of the columns, or empty: column numbers are
# ids; reached: [D, B] or empty
_CHAINS = [
    "def chains(self, before: Tensor, behind: Tensor, token: Tensor, logits: Tensor, positions: Tensor, "
    "slots: Tensor, lanes: List[List[int]], rows: List[Tensor], lengths: List[Tensor], ends: List[Tensor], "
    "bits: Tensor, temperatures: Tensor, known: Tensor, "
    "reached: Tensor, confident: float, vocabulary: int) -> Tuple[Tensor, Tensor, Tensor]:",
    "tokens: List[Tensor] = []",
    "alive: List[Tensor] = []",
    "laws: List[Tensor] = []",
    "every = torch.arange(token.size(0))",
    "going = torch.ones([token.size(0)], dtype=torch.bool)",
    "covers = [len(lanes)]",
    "for lead in range(before.size(0)):",
    "    back = lead - before.size(0)",
    "    grown, masks = lanes_behind(lanes, lengths, ends, back)",
    "    self.whole(before[lead], positions + back, every[:0], behind[lead], covers, grown, rows, masks)",
    "for level in range(slots.size(0)):",
    "    if level > 0 or logits.numel() == 0:",
    "        grown, masks = lanes_behind(lanes, lengths, ends, level)",
    "        logits = self.whole(token, positions + level, every, slots[level], covers, grown, rows, masks)[0]",
    "    row = logits[:, :vocabulary].float()",
    "    if bits.numel() > 0:",
    "        q = torch.softmax(row / temperatures, 1)",
    "        token = draw(q, bits[level])",
    "        going = going & (q.gather(1, token.unsqueeze(1)).squeeze(1) > 0)",
    "        laws.append(q)",
    "        if reached.numel() > 0:",
    "            going = going & (reached[level] * q.amax(1) >= confident)",
    "    else:",
    "        token = row.argmax(1)",
    "        if reached.numel() > 0:",
    "            going = going & (reached[level] * torch.softmax(row, 1).amax(1) >= confident)",
    "    if known.numel() > 0:",
    "        token = known[token]",
    "    tokens.append(token)",
    "    alive.append(going)",
    "    if not bool(going.any()):",
    "        break",
    "q = torch.cat(laws) if len(laws) > 0 else torch.empty([0])",
    "return torch.stack(tokens), torch.stack(alive), q",
]


class Segment:
    """A stretch of operations and the attention call that follows it: (name, layer, query, key, value)."""

    def __init__(
        self,
        run: Callable[..., Any],
        inputs: list[str],
        outputs: list[str],
        attend: tuple[str, int, str, str, str] | None,
    ) -> None:
        self.run, self.inputs, self.outputs, self.attend = run, inputs, outputs, attend


def _type(node: Node) -> str:
    return "int" if isinstance(node.meta["val"], torch.SymInt) else "Tensor"
