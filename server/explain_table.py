"""A traced token as a table for the terminal: a column per stage, a row per candidate, bars where there is room.

Knows rich and traces; nothing about models or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from samplers.registry import DRAWS, STAGES, Registry
from samplers.trace import TokenTrace

if TYPE_CHECKING:
    from server.explain import Setting

LONGEST_NAME = 20  # characters of a token
NARROWEST, WIDEST = 11, 26  # a stage's column
LONGEST_BAR = 16
EIGHTHS = " ▏▎▍▌▋▊▉█"
GAP = 2  # between columns


@dataclass(frozen=True)
class Column:
    """The row of probabilities after one stage, or the model's."""

    name: str
    values: str  # the stage's parameters
    possible: int
    entropy: float
    removed: float | None  # None: not a stage
    chances: dict[int, float]  # by token
    random: tuple[float, ...] = ()


def columns(setting: Setting, trace: TokenTrace) -> list[Column]:
    """The model's row and every stage's, each with the same tokens."""
    first = Column("model", "", trace.possible, trace.entropy, None, dict(trace.candidates))
    shown = [first] + [
        Column(
            stage.name,
            stage_values(setting, stage.name),
            stage.possible[1],
            stage.entropy[1],
            stage.removed_mass,
            {one.token: one.after for one in stage.candidates},
            stage.random,
        )
        for stage in trace.stages
    ]
    if trace.token not in first.chances:  # improbable, yet drawn: it is shown too
        own = [trace.probability, *(stage.drawn[1] for stage in trace.stages)]
        for column, chance in zip(shown, own, strict=True):
            column.chances[trace.token] = chance
    return shown


def stage_values(setting: Setting, name: str) -> str:
    """The parameters of a stage or draw as one short text."""
    item = next((item for item in setting.sampler if item["name"] == name), {})
    off = _neutral(name)
    given = {key: value for key, value in item.items() if key != "name" and (key not in off or value != off[key])}
    if len(given) == 1:
        return _value(next(iter(given.values())))
    return ", ".join(f"{key.removeprefix(name + '_')} {_value(value)}" for key, value in given.items())


def _neutral(name: str) -> dict[str, Any]:
    """The values at which the parameters of a stage or draw change nothing: not worth showing."""
    registry: Registry[Any] = DRAWS if name in DRAWS else STAGES
    return {param.name: param.neutral for param in registry.get(name).params} if name in registry else {}


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (dict, list, tuple)):
        return f"{len(value)} {'entry' if len(value) == 1 else 'entries'}"
    return str(value)


def percent(chance: float) -> str:
    """Short, and telling zero from almost zero."""
    if chance == 0:
        return "0"
    if chance < 1e-4:
        return f"{chance:.0e}"
    if 0.9995 <= chance < 1:  # would be rounded to 100.0%
        return ">99.9%"
    return f"{chance * 100:.{1 if chance >= 0.01 else 2}f}%"


def drawn_by(setting: Setting, trace: TokenTrace) -> str:
    """How the token was picked, in words."""
    draw = trace.draw
    if draw.name == "greedy":
        return "greedy: the most probable token"
    if draw.interval is not None:
        low, high = draw.interval
        return f"{draw.name}: {draw.random[0]:.6f} is in its part of [0, 1), {low:.6f} to {high:.6f}"
    if draw.random:
        return f"{draw.name}, with {', '.join(f'{number:.6f}' for number in draw.random)}"
    return draw.name


def print_opening(out: Console, setting: Setting) -> None:
    chain = " > ".join(f"{item['name']} {stage_values(setting, item['name'])}".strip() for item in setting.sampler)
    out.print(Text.assemble((f"{setting.model}  ", "bold"), chain))
    out.print()


def print_token(out: Console, setting: Setting, number: int, trace: TokenTrace) -> None:
    """One token: what it is, how it came, and its table, in as many parts as the width asks for."""
    last = trace.stages[-1].drawn[1] if trace.stages else trace.probability
    name = setting.names[trace.token]
    out.print(
        Text.assemble(
            (f"{number}  ", "dim"),
            (name, "bold green"),
            f"  the model gave it {percent(trace.probability)}, the chain {percent(last)}",
        )
    )
    out.print(Text(f"{' ' * len(str(number))}  {drawn_by(setting, trace)}", style="dim"))
    shown = columns(setting, trace)
    names = {token: _cut(setting.names[token]) for token in shown[0].chances}
    room = out.width - max(8, *map(len, names.values())) - 4
    fitting = max(1, room // (NARROWEST + GAP))
    for start in range(0, len(shown), fitting):
        part = shown[start : start + fitting]
        before = shown[start - 1] if start else None
        out.print(_table(out, part, before, names, trace.token, min(WIDEST, room // len(part) - GAP)))
        out.print()


def _table(
    out: Console, part: Sequence[Column], before: Column | None, names: dict[int, str], drawn: int, width: int
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, GAP // 2), show_edge=False)
    table.add_column("")
    for column in part:
        name = column.name if len(column.name) <= width else column.name.replace("_", "_\n")
        table.add_column(Text(name), justify="right", width=width, overflow="fold")
    if any(column.values or column.random for column in part):
        table.add_row("", *(Text(_detail(column), style="dim") for column in part))
    table.add_row("possible", *(str(column.possible) for column in part))
    table.add_row("removed", *("" if column.removed is None else percent(column.removed) for column in part))
    table.add_row("entropy", *(f"{column.entropy:.2f}" for column in part), end_section=True)
    room = min(LONGEST_BAR, width - 8)
    blocks = out.encoding.lower().startswith("utf")
    for token, name in names.items():
        cells, known = [], before is None or before.chances[token] > 0
        for column in part:
            chance = column.chances[token]
            if chance > 0:
                cells.append(Text(f"{_bar(chance, room, blocks)} {percent(chance):>7}"))
            else:
                cells.append(Text("removed" if known and column.removed is not None else "-", style="dim red"))
            known = chance > 0
        table.add_row(Text(name), *cells, style="bold green" if token == drawn else "")
    return table


def _detail(column: Column) -> str:
    coins = ", ".join(f"{number:.4f}" for number in column.random)
    return f"{column.values} (random {coins})" if coins else column.values


def _bar(chance: float, room: int, blocks: bool) -> str:
    """A bar of at most `room` characters, with an end in eighths where the terminal has those."""
    if room < 2:
        return ""
    if not blocks:
        return "#" * round(chance * room)
    whole, rest = divmod(round(chance * room * 8), 8)
    return (EIGHTHS[8] * whole + EIGHTHS[rest].strip()).ljust(room)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
