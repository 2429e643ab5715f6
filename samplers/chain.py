"""Turns the sampling fields of a request into one resolved, ordered chain of stages and a draw, run by a program or by
itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from samplers.contract import Draw, SamplerError, Stage
from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.programs.contract import PROGRAMS, Program
from samplers.registry import DRAWS, STAGES
from samplers.temperature import GREEDY_BELOW, Temperature

Owner = Stage | Draw | Program
MAX_ITEMS = 16
DEFAULT_DRAW = "iid"
INTERNAL = frozenset({"min_tokens"})  # scheduled by the stack from the request's limits, not named in a chain
_BEHIND_XTC = 17.5


@dataclass(frozen=True)
class Item:
    """One resolved stage, draw or program with every parameter filled in."""

    name: str
    values: Mapping[str, Any]

    def report(self) -> dict[str, Any]:
        return {"name": self.name, **self.values}


@dataclass(frozen=True)
class Chain:
    """What a request samples with. `stages` holds only those that are not neutral, in executed order."""

    stages: tuple[Item, ...]
    draw: Item
    greedy: bool  # temperature below 1e-5: argmax after the stages that run in greedy mode
    given_order: bool = False  # the listed order was asked for; otherwise stages run by their `order`
    neutral: tuple[Item, ...] = ()  # named by the request, but at values that change nothing: not executed
    program: Item | None = None  # decodes the request; None: every choice is drawn token by token

    def report(self, below: Collection[str] = ()) -> list[dict[str, Any]]:
        """The `drafthouse.sampler` value: executed items, every default filled in. Sent back, it resolves to this.

        `below` are parameters that a preset or the model's configuration sets: where the request has switched such a
        stage off, that is listed too.
        """
        items = [item.report() for item in self.neutral if any(field in below for field in item.values)]
        items += [item.report() for item in self.stages]
        if self.greedy:
            items.append({"name": "temperature", "temperature": 0.0})
        elif self.program is None or PROGRAMS.get(self.program.name).draws:
            items.append(self.draw.report())
        return items if self.program is None else [*items, self.program.report()]


def resolve(
    fields: Mapping[str, Any], vocab_size: int, model: ModelFacts = NO_FACTS, own: Collection[str] | None = None
) -> Chain:
    """The chain of a request's sampling fields for a model; None means absent.

    Fields are the flat names of parameters (`top_p`), and `sampler`, `sampler_order`, `temperature_last`, `draw`.
    `own` are those that the request itself sets, rather than a preset or a configuration below it; None: all of them.
    Raises SamplerError with the dotted path of the field.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    given_order = _one_of(given.pop("sampler_order", "fixed"), "sampler_order", ("fixed", "given")) == "given"
    temperature_last = given.pop("temperature_last", False)
    if not isinstance(temperature_last, bool):
        raise SamplerError("'temperature_last' must be true or false", "temperature_last")
    values, listed, draw, program = _listed(given.pop("sampler", None), vocab_size, model)
    if program is not None and "temperature" not in values:
        usual = PROGRAMS.get(program.name).default_temperature
        given.setdefault("temperature", 1.0 if usual is None else usual)
    flat_draw = given.pop("draw", None)
    if flat_draw is not None:
        chosen = _draw(flat_draw, "draw")
        if draw is not None and draw is not chosen:
            raise SamplerError(f"'draw' is '{chosen.name}' but 'sampler' says '{draw.name}'", "draw")
        draw = chosen
        values.setdefault(draw.name, _when_named(draw))
    draw = draw or DRAWS.get(DEFAULT_DRAW)
    values.setdefault(draw.name, _neutral(draw))
    owners: dict[str, Stage | Draw] = {field: owner for owner in (*DRAWS, *_public()) for field in _fields(owner)}
    for field, raw in given.items():
        if field not in owners:
            raise SamplerError(f"unknown sampling field '{field}'; known: {', '.join(sorted(owners))}", field)
        owner = owners[field]
        value = _parse(owner, field, raw, field, vocab_size)
        known = values.setdefault(owner.name, _neutral(owner))
        if owner.name in DRAWS and owner is not draw and value != known[field]:
            raise SamplerError(f"'{field}' belongs to the draw '{owner.name}', but the draw is '{draw.name}'", field)
        if owner.name in listed and known[field] != value:
            raise SamplerError(f"'{field}' is {value} but 'sampler' says {known[field]}", field)
        known[field] = value
    for stage in _public():
        if stage.name in values and stage.is_neutral(values[stage.name]) and stage.name not in listed:
            _check_effect(stage, values[stage.name], given, given if own is None else own)
    temperature = values.get("temperature", {}).get("temperature", 1.0)
    greedy = temperature < GREEDY_BELOW
    asked = [stage for stage in _public() if stage.name in values and not stage.is_neutral(values[stage.name])]
    for one in [*asked, draw]:
        one.check(values[one.name], model)
        for other in asked:
            if other.name in one.excludes:
                raise SamplerError(f"'{one.name}' cannot be combined with '{other.name}'", _fields(other)[0])
            for param in other.params:
                if param.name in one.excludes and values[other.name][param.name] != param.neutral:
                    raise SamplerError(f"'{one.name}' cannot be combined with '{param.name}'", param.name)
        if program is not None and not one.resumable:
            field = "draw" if one is draw else _fields(one)[0]
            raise SamplerError(f"'{program.name}' cannot be combined with '{one.name}'", field)
    active = [stage for stage in asked if stage.in_greedy or not greedy]
    active.sort(key=lambda stage: _place(stage, temperature_last))
    if given_order:
        active.sort(key=_in_list_order(active, listed, temperature_last))
    stages = tuple(Item(stage.name, values[stage.name]) for stage in active)
    off = [name for name in values if name not in DRAWS and STAGES.get(name).is_neutral(values[name])]
    neutral = tuple(Item(name, values[name]) for name in off)
    drawing = Item(draw.name, values[draw.name])
    return Chain(stages, drawing, greedy, given_order or temperature_last, neutral, program)


def flat_names() -> set[str]:
    """Every parameter of every stage and draw, those of third parties included."""
    return {field for owner in (*_public(), *DRAWS) for field in _fields(owner)}


def _public() -> list[Stage]:
    return [stage for stage in STAGES if stage.name not in INTERNAL]


def _check_effect(stage: Stage, values: Mapping[str, Any], given: Collection[str], own: Collection[str]) -> None:
    """A neutral stage's field that the request sets to no avail, since nobody sets what switches the stage on.
    Raises SamplerError."""
    off = _neutral(stage)
    on = {param.name: param.high if param.when_named == param.neutral else param.when_named for param in stage.params}
    switches = {name: value for name, value in on.items() if not stage.is_neutral({**off, name: value})}
    if any(name in given for name in switches):
        return
    for field, value in values.items():
        # a value that would switch off the stage that is on says so, and is obeyed
        if field in own and value != off.get(field) and not stage.is_neutral({**off, **switches, field: value}):
            needed = " or ".join(f"'{name}'" for name in switches)
            raise SamplerError(f"'{field}' has no effect without {needed}", field)


def _place(stage: Stage, temperature_last: bool) -> float:
    return _BEHIND_XTC if temperature_last and stage.name == "temperature" else stage.order


def _in_list_order(
    active: list[Stage], listed: list[str], temperature_last: bool
) -> Callable[[Stage], tuple[int, bool, float]]:
    """Sorts listed stages by their place in the list. Every other one runs ahead of the first of them that follows it
    in the fixed order, or of all if temperature does: what a request asks for beside the list must see the model's
    logits where it usually does."""
    places = {stage.name: _place(stage, temperature_last) for stage in active}

    def key(stage: Stage) -> tuple[int, bool, float]:
        if stage.name in listed:
            return listed.index(stage.name), True, 0.0
        place = places[stage.name]
        behind = [at for at, name in enumerate(listed) if places.get(name, place) > place]
        return 0 if place < Temperature.order else min(behind, default=len(listed)), False, place

    return key


def _listed(
    sampler: Any, vocab: int, model: ModelFacts
) -> tuple[dict[str, dict[str, Any]], list[str], Draw | None, Item | None]:
    """(values of stages and draw by name, names in list order, the draw, the program) of the `sampler` field."""
    if sampler is None:
        return {}, [], None, None
    single = not isinstance(sampler, list)
    items = [sampler] if single else sampler
    if len(items) > MAX_ITEMS:
        raise SamplerError(f"'sampler' has more than {MAX_ITEMS} items", "sampler")
    values: dict[str, dict[str, Any]] = {}
    listed: list[str] = []
    draw: Draw | None = None
    program: Item | None = None
    for i, item in enumerate(items):
        path = "sampler" if single else f"sampler[{i}]"
        if isinstance(item, str):
            item = {"name": item}
        if not isinstance(item, Mapping):
            raise SamplerError(f"'{path}' must be a name or an object with a name", path)
        name = item.get("name")
        if not isinstance(name, str):
            raise SamplerError(f"'{path}.name' is required", f"{path}.name")
        if name in listed:
            raise SamplerError(f"'{path}.name': '{name}' occurs twice", f"{path}.name")
        owner = _named(name, f"{path}.name")
        if name in DRAWS:
            if draw is not None:
                raise SamplerError(f"'{path}.name': '{draw.name}' and '{name}' are both draws", f"{path}.name")
            draw = DRAWS.get(name)
        if name in PROGRAMS and program is not None:
            raise SamplerError(f"'{path}.name': '{program.name}' and '{name}' are both programs", f"{path}.name")
        chosen = _when_named(owner)
        for key, value in item.items():
            if key == "name" or value is None:
                continue
            if key not in _fields(owner):
                known = ", ".join(_fields(owner)) or "none"
                raise SamplerError(f"'{path}.{key}' is not a parameter of {name}; known: {known}", f"{path}.{key}")
            chosen[key] = _parse(owner, key, value, f"{path}.{key}", model if name in PROGRAMS else vocab)
        for field in _fields(owner):
            if field not in chosen:
                raise SamplerError(f"'{path}.{field}' is required", f"{path}.{field}")
        listed.append(name)
        if name in PROGRAMS:
            program = Item(name, chosen)
        else:
            values[name] = chosen
    return values, listed, draw, program


def _named(name: str, path: str) -> Owner:
    """The stage, draw or program a chain's item names."""
    for registry in (DRAWS, PROGRAMS):
        if name in registry:
            return registry.get(name)
    if name in STAGES and name not in INTERNAL:
        return STAGES.get(name)
    known = sorted([stage.name for stage in _public()] + [one.name for one in (*DRAWS, *PROGRAMS)])
    raise SamplerError(f"unknown sampler '{name}'; known: {', '.join(known)}", path)


def _fields(owner: Owner) -> tuple[str, ...]:
    return (*(param.name for param in owner.params), *getattr(owner, "structured", ()))


def _neutral(owner: Owner) -> dict[str, Any]:
    return {**getattr(owner, "structured_defaults", {}), **{param.name: param.neutral for param in owner.params}}


def _when_named(owner: Owner) -> dict[str, Any]:
    return {**getattr(owner, "structured_defaults", {}), **{param.name: param.when_named for param in owner.params}}


def _parse(owner: Owner, field: str, value: Any, path: str, known: int | ModelFacts) -> Any:
    """`known`: what the owner's own fields are checked against: a program's the model, a stage's its vocabulary."""
    for param in owner.params:
        if param.name == field:
            return param.check(value, path)
    return cast(Any, owner).parse(field, value, path, known)  # draws have no other fields


def _draw(name: Any, path: str) -> Draw:
    if not isinstance(name, str):
        raise SamplerError(f"'{path}' must be a string", path)
    return DRAWS.get(name, path)


def _one_of(value: Any, path: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise SamplerError(f"'{path}' must be one of {', '.join(allowed)}", path)
    return str(value)
