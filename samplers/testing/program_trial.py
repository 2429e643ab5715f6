"""A program at some values, and the requests it is tried with: small random laws over seven tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samplers.contract import SamplerError
from samplers.model_facts import ModelFacts
from samplers.programs.branch import Limits, Mixture
from samplers.programs.contract import Program, ProgramError, Setting
from samplers.testing.program_world import Decoding, Entry, Law, Outcome, Stages

END = 0  # the id that ends a text
FACTS = ModelFacts([b"<end>", b"a", b"b", b"c", b"ab", b"\n", b"d"], frozenset({END}))
MOST_PASSES = 5000
_WIDTH = 4  # of the hidden states


@dataclass(frozen=True)
class Case:
    """A request, but for the program's own parameters."""

    law: Law
    n: int = 3
    max_tokens: int = 5
    min_tokens: int = 0
    ending: bool = True  # whether END ends a text
    stops: tuple[bytes, ...] = ()
    stages: Stages | None = None
    seed: int = 0

    @property
    def limits(self) -> Limits:
        ending = frozenset({END} if self.ending else ())
        assert FACTS.pieces is not None
        return Limits(self.max_tokens, self.min_tokens, ending, self.stops, FACTS.pieces, FACTS.special_ids)


@dataclass(frozen=True)
class Trial:
    """A program at one set of values."""

    program: Program
    values: Mapping[str, Any]  # checked and parsed
    model: ModelFacts

    def accepts(self, case: Case) -> bool:
        stages = frozenset({"forbids"} if case.stages else ())
        temperature = self.program.default_temperature or 1.0
        setting = Setting(case.n, case.max_tokens, case.min_tokens, temperature, stages, model=self.model)
        try:
            self.program.check(self.values, setting)
        except SamplerError:
            return False
        return True

    def begin(self, case: Case) -> Decoding:
        limits = case.limits
        return Decoding(
            self.program,
            case.law,
            n=case.n,
            max_tokens=limits.max_tokens,
            values=self.values,
            ending_ids=sorted(limits.ending_ids),
            min_tokens=limits.min_tokens,
            stages=case.stages,
            seed=case.seed,
            stops=limits.stops,
            model=self.model,
        )

    def decode(self, case: Case) -> Outcome | None:
        """None: the program has found the request impossible."""
        decoding = self.begin(case)
        try:
            while decoding.step():
                assert decoding.outcome.passes < MOST_PASSES, f"no end after {MOST_PASSES} forward passes"
        except ProgramError as error:
            assert error.code and str(error), "a ProgramError has a code and a message"
            return None
        return decoding.outcome

    def cases(self, **changes: Any) -> Iterator[Case]:
        """Requests that the program takes: over several laws, of several sizes."""
        plain = Case(law(0))
        for case in (
            plain,
            replace(plain, law=law(1, 4.0), n=1),
            replace(plain, law=law(2, 0.0), n=4, max_tokens=3),  # every token as probable as every other
            replace(plain, law=law(3), n=2, max_tokens=1),
            replace(plain, law=law(4), min_tokens=2, max_tokens=6),
            replace(plain, law=law(5), stops=(b"bc", b"\n"), max_tokens=6),
            replace(plain, law=_without(law(6), 1, 4), n=5, seed=7),
            replace(plain, law=law(7), n=2, ending=False),
        ):
            case = replace(case, **changes)
            if self.accepts(case):
                yield case


def law(seed: int, spread: float = 1.5) -> Law:
    """A random recurrent law over the tokens: a mixture's input is the mean of its tokens'."""
    rng = np.random.default_rng(seed)
    assert FACTS.pieces is not None
    inputs, step, head = (rng.normal(size=(size, _WIDTH)) for size in (len(FACTS.pieces), _WIDTH, len(FACTS.pieces)))

    def logits(path: tuple[Entry, ...]) -> Sequence[float]:
        state = np.ones(_WIDTH)
        for entry in path:
            mixture = entry if isinstance(entry, Mixture) else Mixture((entry,), (1.0,))
            state = np.tanh(state @ step + np.array(mixture.weights) @ inputs[list(mixture.ids)])
        return (spread * (head @ state)).tolist()  # type: ignore[no-any-return]

    return logits


def _without(one: Law, *tokens: int) -> Law:
    return lambda path: [-math.inf if token in tokens else value for token, value in enumerate(one(path))]
