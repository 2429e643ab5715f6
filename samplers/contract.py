"""The contract of samplers: a `Stage` maps rows of logits to rows of logits, a `Draw` picks one token of each.

Both are stateless objects; what must be remembered between tokens lives in a `State`, keyed by request slot.
A row is one distribution; rows never see each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.rng import Noise, Stream

S = TypeVar("S")
_LARGEST = 1e300  # larger numbers, infinity included, fit no parameter


class SamplerError(ValueError):
    """A request names a sampler or a value that does not exist; `param` is the dotted path of the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Param:
    """One scalar parameter of a stage or draw: its flat API name, type, range and neutral value."""

    name: str
    kind: type  # float, int, bool or str
    neutral: float | int | bool | str  # at this value the stage is an exact no-op
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False  # the lower end itself is not allowed
    high_open: bool = False
    also: tuple[float, ...] = ()  # values outside the range that mean "off"
    choices: tuple[str, ...] = ()  # of a parameter of kind str; stages and draws see the index
    default: float | int | bool | str | None = None  # value when the stage is named without it; None: the neutral one

    @property
    def when_named(self) -> float | int | bool | str:
        return self.neutral if self.default is None else self.default

    def check(self, value: Any, path: str) -> float | int | bool | str:
        """The value in its own type. Raises SamplerError for a wrong type, NaN or a value out of range."""
        if self.kind is str:
            if not isinstance(value, str) or value not in self.choices:
                raise SamplerError(f"'{path}' must be one of {', '.join(self.choices)}", path)
            return value
        if self.kind is bool:
            if not isinstance(value, bool):
                raise SamplerError(f"'{path}' must be true or false", path)
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SamplerError(f"'{path}' must be {'an integer' if self.kind is int else 'a number'}", path)
        if abs(value) > _LARGEST or value != value:
            raise SamplerError(f"'{path}' must be finite and of sensible size", path)
        if self.kind is int and value != int(value):
            raise SamplerError(f"'{path}' must be an integer", path)
        if value in self.also:
            return self.neutral
        below = value <= self.low if self.low_open else value < self.low
        above = value >= self.high if self.high_open else value > self.high
        if below or above:
            raise SamplerError(f"'{path}' must be in {self.range_text()}, got {value}", path)
        number: float | int = self.kind(value)
        return number

    def range_text(self) -> str:
        left = "(" if self.low_open or self.low == -math.inf else "["
        right = ")" if self.high_open or self.high == math.inf else "]"
        off = f" or {' or '.join(f'{v:g}' for v in self.also)} (off)" if self.also else ""
        return f"{left}{self.low:g}, {self.high:g}{right}{off}"


@dataclass(frozen=True)
class Shape:
    """What a state needs to allocate its tensors."""

    slots: int
    vocab: int
    device: torch.device
    model: ModelFacts = NO_FACTS
    _shared: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def shared(self, make: Callable[[Shape], S]) -> S:
        """The state that `make` builds, one for all stages of a stack that ask for it.

        Its `Admission.values` are those of whichever of these stages comes first.
        """
        if make not in self._shared:
            self._shared[make] = make(self)
        state: S = self._shared[make]
        return state


@dataclass(frozen=True)
class Admission:
    """What a state may learn when a slot is taken: the parameters and tokens so far."""

    values: Mapping[str, Any]  # this stage's own parameters, scalar or not
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]  # non-empty after a fork into a new slot or a resume
    ending_ids: frozenset[int] = frozenset()  # EOS and stop ids of the request that the vocabulary has
    min_tokens: int = 0
    stream: Stream = field(default=Stream(0, 0))  # the choice's random stream
    n: int = 1  # choices of the request, which share the stream's key


class State(Protocol):
    """What a stage remembers per slot. All tensors are owned by the state; slots are stable until freed."""

    def admit(self, slot: int, admission: Admission) -> None:
        """Fully overwrite the slot."""
        ...

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        """Commit one token to each of these distinct slots. slots, tokens: [R] int64, not to be written to: others get
        them too."""
        ...

    def snapshot(self, slot: int) -> Any:
        """What `restore` needs to undo every accept made after this call."""
        ...

    def restore(self, slot: int, snapshot: Any) -> None: ...

    def fork(self, parent: int, child: int) -> None:
        """Copy a slot; both go on independently."""
        ...

    def free(self, slot: int) -> None: ...


@runtime_checkable
class Telling(Protocol):
    """A state with something to say about a choice that has ended."""

    def tell(self, slot: int) -> Mapping[str, Any]:
        """Finite JSON for the choice's `drafthouse` object, under names of the sampler's own."""
        ...


@dataclass(frozen=True)
class Rows:
    """The rows of one call. A slot may occur more than once (rows of a draft tree)."""

    slots: Tensor  # [R] int64, device; request slot of each row
    positions: Tensor  # [R] int64, device; output position t of the token to draw
    noise: Noise  # random numbers of each row's stream at its position
    raw: Tensor | None = None  # [R, V] fp32, before all stages; for draws that ask for it, not to be written to


class Stage(Protocol):
    """Maps logits to logits. Registered under `name`, ordered by `order` (samplers.md section 3)."""

    name: ClassVar[str]
    order: ClassVar[float]
    params: ClassVar[tuple[Param, ...]]
    structured: ClassVar[tuple[str, ...]]  # non-scalar fields, checked by `parse`, delivered by Admission.values
    structured_defaults: ClassVar[Mapping[str, Any]]  # of those that a request may leave out
    in_greedy: ClassVar[bool]  # runs at temperature 0 as well (masks, bias, penalties)
    excludes: ClassVar[frozenset[str]]  # stages and draws that cannot be in one chain with it
    resumable: ClassVar[bool]  # its state in a slot is a function of the tokens so far

    def parse(self, field: str, value: Any, path: str, vocab: int) -> Any:
        """The checked value of a structured field, for a vocabulary of `vocab` ids. Raises SamplerError."""
        ...

    def check(self, values: Mapping[str, Any], model: ModelFacts) -> None:
        """Raises SamplerError for values that exclude each other or that this model cannot honour."""
        ...

    def is_neutral(self, values: Mapping[str, Any]) -> bool:
        """True when these values change nothing; the stage is then not scheduled for the request."""
        ...

    def new_state(self, shape: Shape) -> State | None: ...

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        """logits [R, V] fp32 -> [R, V] fp32; params[name] is [R]. Must not modify what it is given, and gives the
        result away: it is `logits` itself or a tensor nobody else holds."""
        ...


class Draw(Protocol):
    """Picks one token per row of the final logits."""

    name: ClassVar[str]
    params: ClassVar[tuple[Param, ...]]  # given by flat name or in the draw's item, as those of stages are
    shared_noise: ClassVar[bool]  # the stages before it get one random stream for all choices of a request
    sees_raw: ClassVar[bool]  # needs `Rows.raw`
    excludes: ClassVar[frozenset[str]]  # stages, and parameters of stages, that cannot be in one chain with it
    resumable: ClassVar[bool]  # as of stages

    def check(self, values: Mapping[str, Any], model: ModelFacts) -> None:
        """Raises SamplerError for values that exclude each other or that this model cannot honour."""
        ...

    def new_state(self, shape: Shape) -> State | None: ...

    def pick(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        """logits [R, V] fp32, each row with a finite entry -> tokens [R] int64, none of them masked. Must not modify
        what it is given."""
        ...
