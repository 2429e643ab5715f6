"""Every registered program, whoever registered it, through the conformance run; and what that run finds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

import samplers.programs  # noqa: F401 - registers what there is
from samplers.contract import Param, SamplerError
from samplers.model_facts import ModelFacts
from samplers.programs.branch import Branch, End
from samplers.programs.contract import PROGRAMS, BaseProgram, Program, Run, Setting, Task
from samplers.testing import Failed, check_program, program_trial
from samplers.testing.program_checks import CHECKS

# Values of programs that cannot be named without any, or whose defaults need more than a table of logits.
VALUES: dict[str, dict[str, Any]] = {
    "conditional_beam": {"event": {"min_len": 2}},
    "superposed": {"alpha": 0.0},
}


@pytest.mark.parametrize("program", list(PROGRAMS), ids=lambda program: program.name)
def test_registered(program: Program) -> None:
    assert check_program(program, VALUES.get(program.name)) == list(CHECKS)


# --- a program that does it all right, and others that each do one thing wrong


class Good(BaseProgram):
    """n greedy continuations, each of another first token."""

    name = "suspect"
    params = (Param("width", int, 4, low=1, high=8),)

    def run(self, task: Task) -> Run:
        width = max(task.n, task.values["width"])
        rows = yield [task.root]
        branches = [task.root.fork(i).push(token) for i, token in enumerate(rows.best(width)[0])]
        for branch in branches[task.n :]:
            branch.release()
        branches = branches[: task.n]
        while live := [branch for branch in branches if branch.end is None and not branch.released]:
            rows = yield live
            for branch, best in zip(live, rows.best(1), strict=True):
                self.go_on(branch, best)
        self.tell(task, [branch for branch in branches if not branch.released])

    def go_on(self, branch: Branch, best: list[Any]) -> None:
        if best:
            branch.push(best[0])
        else:
            branch.release()

    def tell(self, task: Task, branches: list[Branch]) -> None:
        task.report["width"] = task.values["width"]
        for number, branch in enumerate(branches):
            task.show(number, branch, logprob=branch.logprob)


class Skips(Good):
    def tell(self, task: Task, branches: list[Branch]) -> None:
        for number, branch in enumerate(branches[1:], start=1):
            task.show(number, branch)


class Silent(Good):
    def tell(self, task: Task, branches: list[Branch]) -> None:
        pass


class Unfinished(Good):
    def tell(self, task: Task, branches: list[Branch]) -> None:
        for number, branch in enumerate(branches):
            task.show(number, branch.truncate(1) if len(branch) > 1 else branch)


class Endless(Good):
    def run(self, task: Task) -> Run:
        while True:
            yield [task.root]


class AsksForNothing(Good):
    def run(self, task: Task) -> Run:
        while True:
            yield []


class LongerThanAsked(Good):
    def tell(self, task: Task, branches: list[Branch]) -> None:
        for number, branch in enumerate(branches):
            task.finish(number, [*branch.tokens, branch.tokens[-1]], End("length"))


class WrongEnd(Good):
    def tell(self, task: Task, branches: list[Branch]) -> None:
        for number, branch in enumerate(branches):
            task.finish(number, branch.tokens, End("stop"))


class NotJson(Good):
    def tell(self, task: Task, branches: list[Branch]) -> None:
        for number, branch in enumerate(branches):
            task.show(number, branch, where=branch)


class NotFinite(Good):
    def tell(self, task: Task, branches: list[Branch]) -> None:
        super().tell(task, branches)
        task.report["best"] = float("-inf")


class Moody(Good):
    """Draws from a source that is not the request's."""

    source = random.Random(0)

    def tell(self, task: Task, branches: list[Branch]) -> None:
        self.source.shuffle(branches)
        super().tell(task, branches)
        task.report["mood"] = self.source.random()


class Remembers(Good):
    """Keeps a request's branches where another one finds them."""

    last: Task

    def run(self, task: Task) -> Run:
        self.last = task
        yield from super().run(task)

    def tell(self, task: Task, branches: list[Branch]) -> None:
        super().tell(task, branches)
        task.report["n"] = self.last.n


class IgnoresStages(Good):
    def run(self, task: Task) -> Run:
        branch = task.root
        while branch.end is None:
            rows = yield [branch]
            branch.push(rows.tokens(rows.raw.argmax(1, keepdim=True))[0][0])
        task.show(0, branch)


class FallsOverEmptyRows(Good):
    def go_on(self, branch: Branch, best: list[Any]) -> None:
        branch.push(best[0])


class NeverReleases(Good):
    def run(self, task: Task) -> Run:
        branch = task.root
        while branch.end is None:
            rows = yield [branch]
            if not (best := rows.best(1)[0]):
                return
            branch = branch.fork().push(best[0])
        task.show(0, branch)


class Clings(Good):
    """Goes on when its client has gone away."""

    def run(self, task: Task) -> Run:
        try:
            yield from super().run(task)
        except GeneratorExit:
            yield [task.root]


class TakesAnyTemperature(Good):
    def check(self, values: Mapping[str, Any], setting: Setting) -> None:
        pass


class TakesAnything(Good):
    structured = ("extra",)
    structured_defaults = {"extra": None}

    def parse(self, field: str, value: Any, path: str, model: ModelFacts) -> Any:
        return value


class RefusesNamelessly(TakesAnything):
    def parse(self, field: str, value: Any, path: str, model: ModelFacts) -> Any:
        raise SamplerError("no")


class FallsOverValues(TakesAnything):
    def parse(self, field: str, value: Any, path: str, model: ModelFacts) -> Any:
        return value["key"]


class RefusesEverything(Good):
    def check(self, values: Mapping[str, Any], setting: Setting) -> None:
        raise SamplerError("'width' is wrong", "width")


class TwoFieldsOfOneName(Good):
    structured = ("width",)


def test_a_good_one_passes() -> None:
    assert check_program(Good()) == list(CHECKS)
    assert check_program(Good(), [{"width": 2}, {}]) == list(CHECKS)


@pytest.mark.parametrize(
    ("broken", "check", "words"),
    [
        (Skips, "choices", "choices [1, 2] of 3"),
        (Silent, "choices", "no request gets an answer"),
        (Unfinished, "choices", "has no end"),
        (Endless, "choices", "no end after"),
        (AsksForNothing, "choices", "asks for nothing"),
        (LongerThanAsked, "choices", "goes on after its end"),
        (WrongEnd, "choices", "ends by"),
        (NotJson, "choices", "not JSON serializable"),
        (NotFinite, "choices", "not JSON compliant"),
        (Moody, "repeats", "answered otherwise"),
        (Remembers, "repeats", "disturb each other"),
        (IgnoresStages, "masks", "forbidden"),
        (FallsOverEmptyRows, "emptied", "IndexError"),
        (NeverReleases, "branches", "branches for 8 tokens"),
        (Clings, "broken_off", "ignored GeneratorExit"),
        (TakesAnyTemperature, "refuses", "takes any"),
        (TakesAnything, "refuses", "takes whatever"),
        (RefusesNamelessly, "refuses", "names None"),
        (FallsOverValues, "refuses", "TypeError"),
        (RefusesEverything, "declaration", "no request is taken"),
        (TwoFieldsOfOneName, "declaration", "occurs twice"),
    ],
)
def test_broken_ones_fail(broken: type[Good], check: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_trial, "MOST_PASSES", 300)
    with pytest.raises(Failed) as caught:
        check_program(broken())
    assert check in caught.value.checks
    assert words in str(caught.value)


def test_exceptions_need_a_check_and_a_reason() -> None:
    reason = {"masks": "looks at raw rows only"}
    assert "masks" not in check_program(IgnoresStages(), exceptions={**reason, "emptied": "has no use for it"})
    with pytest.raises(ValueError, match="name no checks"):
        check_program(Good(), exceptions={"nothing": "no reason"})
    with pytest.raises(ValueError, match="need a reason"):
        check_program(Good(), exceptions={"masks": ""})


def test_unknown_fields_are_found() -> None:
    with pytest.raises(Failed, match="no fields of 'suspect': widht"):
        check_program(Good(), {"widht": 3})
