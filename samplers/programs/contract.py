"""The contract of programs: how one request is decoded when it is more than one next token at a time.

A program is written as a generator. It yields the branches whose next rows it wants and is sent these rows; it pushes
tokens onto branches, forks, truncates and releases them; it shows or finishes choices; it returns when all is said.
The engine computes what it asks for together with everybody else's tokens, in one forward pass.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from samplers.contract import Param, SamplerError
from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.programs.branch import REASONS, Branch, End, Limits, Token
from samplers.programs.rows import Rows
from samplers.registry import ItemRegistry
from samplers.rng import Stream

Run = Generator[Sequence[Branch], Rows, None]  # yields branches, is sent their rows


class ProgramError(Exception):
    """The request cannot be answered as asked; `code` and the message go to the client, as a 400."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Setting:
    """What a request asks for besides the program's own parameters."""

    n: int  # choices
    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    stages: frozenset[str] = frozenset()  # names of those that change anything
    draw: str = "iid"
    model: ModelFacts = NO_FACTS


@dataclass
class Shown:
    """What a program has said about one choice and nobody has taken yet."""

    choice: int
    tokens: list[Token] = field(default_factory=list)
    end: End | None = None
    details: dict[str, Any] = field(default_factory=dict)  # with the end; goes into the response as it is


class Task:
    """One request, as its program sees it."""

    def __init__(
        self,
        values: Mapping[str, Any],
        n: int,
        prompt_ids: Sequence[int],
        limits: Limits,
        stream: Stream,
        model: ModelFacts = NO_FACTS,
    ) -> None:
        self.values = values  # the program's parameters
        self.n = n
        self.prompt_ids = prompt_ids
        self.limits = limits
        self.stream = stream
        self.model = model
        self.report: dict[str, Any] = {}  # about the whole request; goes into the response as it is
        self.made: list[Branch] = []  # every branch, in order of creation; its reader removes what it has seen
        self.root = Branch(limits, stream, self.made)  # the prompt
        self._shown: dict[int, Shown] = {}
        self._counts: dict[int, int] = {}  # tokens said of each choice

    def show(self, choice: int, branch: Branch, **details: Any) -> None:
        """What a branch holds beyond what has been said of this choice is final; so is its end, if it has one."""
        said = self._counts.get(choice, 0)
        assert said <= len(branch.tokens), "what has been said cannot be taken back"
        self._say(choice, branch.tokens[said:], branch.end, details)

    def finish(self, choice: int, tokens: Sequence[Token], end: End, **details: Any) -> None:
        """A whole choice at once."""
        assert choice not in self._counts
        self._say(choice, tokens, end, details)

    def take(self) -> list[Shown]:
        """What has been said since the last call."""
        shown, self._shown = list(self._shown.values()), {}
        return shown

    def _say(self, choice: int, tokens: Sequence[Token], end: End | None, details: dict[str, Any]) -> None:
        assert 0 <= choice < self.n
        assert end is None or end.reason in REASONS
        json.dumps(details, allow_nan=False)  # raises here, in the program, and not where the answer is written
        shown = self._shown.setdefault(choice, Shown(choice))
        assert shown.end is None
        shown.tokens += tokens
        shown.end, shown.details = end, shown.details | details
        self._counts[choice] = self._counts.get(choice, 0) + len(tokens)


class Program(Protocol):
    """Stateless; everything about a request lives in its `run`."""

    name: ClassVar[str]
    params: ClassVar[tuple[Param, ...]]  # given in the program's item only
    structured: ClassVar[tuple[str, ...]]  # fields that are no scalars, checked by `parse`
    structured_defaults: ClassVar[Mapping[str, Any]]
    needs: ClassVar[frozenset[str]]  # capabilities of the runner; a lacking one is a 400 before anything starts
    draws: ClassVar[frozenset[str]]  # draws it can be combined with; without any it draws nothing
    default_n: ClassVar[int]  # choices of a request that does not say
    default_max_tokens: ClassVar[int | None]  # None: the endpoint's
    default_temperature: ClassVar[float | None]  # None: 1

    def parse(self, field: str, value: Any, path: str, model: ModelFacts) -> Any:
        """The checked value of a structured field. Raises SamplerError."""
        ...

    def check(self, values: Mapping[str, Any], setting: Setting) -> None:
        """Raises SamplerError for what the program cannot do."""
        ...

    def run(self, task: Task) -> Run:
        """Decode. Raises ProgramError for what turns out to be impossible."""
        ...


class BaseProgram:
    """Decodes at temperature 1 and draws nothing: everything that the simplest program does not have to say."""

    name: ClassVar[str]
    params: ClassVar[tuple[Param, ...]] = ()
    structured: ClassVar[tuple[str, ...]] = ()
    structured_defaults: ClassVar[Mapping[str, Any]] = {}
    needs: ClassVar[frozenset[str]] = frozenset({"fork", "logit_rows"})
    draws: ClassVar[frozenset[str]] = frozenset()
    default_n: ClassVar[int] = 1
    default_max_tokens: ClassVar[int | None] = None
    default_temperature: ClassVar[float | None] = None

    def parse(self, field: str, value: Any, path: str, model: ModelFacts) -> Any:
        raise SamplerError(f"'{path}' is not a field of {self.name}", path)

    def check(self, values: Mapping[str, Any], setting: Setting) -> None:
        if not self.draws and (setting.temperature != 1 or "temperature" in setting.stages):
            raise SamplerError(f"'{self.name}' works at temperature 1 only, got {setting.temperature:g}", "temperature")
        allowed = self.draws or {"iid"}
        if setting.draw not in allowed:
            raise SamplerError(f"'{self.name}' cannot be combined with the draw '{setting.draw}'", "draw")

    def run(self, task: Task) -> Run:
        raise NotImplementedError


PROGRAMS: ItemRegistry[Program] = ItemRegistry("program", "drafthouse.programs", ("parse", "check", "run"))
