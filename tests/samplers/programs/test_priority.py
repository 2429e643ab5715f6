"""Priority sampling on trees small enough to enumerate."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from samplers.contract import SamplerError
from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.programs.branch import DEAD_END, Limits
from samplers.programs.contract import PROGRAMS, Setting, Task
from samplers.programs.priority import MOST_CHOICES, Priority
from samplers.programs.rows import Rows
from samplers.rng import Stream
from samplers.testing.program_world import Choice, Entry, Outcome, decode, with_defaults

Path = tuple[int, ...]
END = 0
V, LENGTH = 4, 3  # token 0 ends a text: 3 branches of it, and one that stops, at every place
PIECES = [b"<end>", b"a", b"b", b"ab"]
FACTS = ModelFacts(PIECES, frozenset({END}))
KEYS = ["local", "joint"]


def table(seed: int, spread: float = 2.0) -> Callable[[tuple[Entry, ...]], Sequence[float]]:
    """A random law: a row for every output so far."""
    rows: dict[tuple[Entry, ...], Any] = {}

    def law(path: tuple[Entry, ...]) -> Sequence[float]:
        if path not in rows:
            rows[path] = np.random.default_rng([seed, len(path), *map(int, path)]).normal(0, spread, V)  # type: ignore
        row: Sequence[float] = rows[path]
        return row

    return law


def leaves(length: int = LENGTH, vocab: int = V) -> set[Path]:
    """Every complete output."""
    paths = (path for n in range(1, length + 1) for path in itertools.product(range(vocab), repeat=n))
    return {p for p in paths if END not in p[:-1] and (p[-1] == END or len(p) == length)}


def logprob(law: Any, path: Path) -> float:
    total = 0.0
    for at, token in enumerate(path):
        row = np.array(law(path[:at]), float)
        total += row[token] - np.logaddexp.reduce(row)
    return total


def run(law: Any, n: int, *, ending: Sequence[int] = (END,), length: int = LENGTH, **options: Any) -> Outcome:
    """A decode at branch width V unless `values` say otherwise, checked for its cost."""
    values = {"branch_width": V, **options.pop("values", {})}
    outcome = decode(Priority(), law, n=n, max_tokens=length, ending_ids=ending, values=values, **options)
    if not outcome.report["dead_ends"] and not outcome.report["duplicates"]:
        assert outcome.computed <= sum(len(c.ids) - c.details["branch_depth"] for c in listed(outcome))
    assert len(set(outcome.texts)) == len(outcome.texts)
    assert sorted(outcome.choices) == list(range(len(outcome.choices)))
    return outcome


def listed(outcome: Outcome) -> list[Choice]:
    return [outcome.choices[i] for i in sorted(outcome.choices)]


def reference(law: Any, n: int, key: str, width: int, valid: Callable[[Path], bool] = lambda path: True) -> list[Path]:
    """The specification's pseudo-code, with a plain list for a heap. `valid`: of a prefix."""
    found: list[Path] = []
    heap: list[tuple[float, int, int, Path]] = [(-math.inf, 0, -1, ())]
    while heap and len(found) < n:
        heap.sort()
        *_, path = heap.pop(0)
        while not (path and (path[-1] == END or len(path) == LENGTH)):
            row = np.array(law(path), float)
            logq = row - np.logaddexp.reduce(row)
            order = [t for t in np.lexsort((np.arange(V), -logq)).tolist() if valid((*path, t))][:width]
            for t in order[1:]:
                value = logq[t] + (logprob(law, path) if key == "joint" else 0.0)
                heap.append((-round(value * 2**16), t, len(heap) + 1000 * len(found), (*path, t)))
            path = (*path, order[0])
        found.append(path)
    return found


# --- the order


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("seed", range(6))
def test_all_leaves_and_nothing_else(key: str, seed: int) -> None:
    law = table(seed)
    outcome = run(law, 100, values={"key": key})
    assert set(outcome.texts) == leaves()
    assert math.fsum(math.exp(choice.details["logprob"]) for choice in listed(outcome)) == pytest.approx(1, abs=1e-5)
    assert outcome.report == {"exhausted": True, "order": "exact", "pops": 40, "dead_ends": 0, "duplicates": 0}
    for choice in listed(outcome):
        assert choice.details["logprob"] == pytest.approx(logprob(law, choice.ids), abs=1e-4)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("width", [2, 3, V, 1000])
def test_the_pseudo_code(key: str, width: int) -> None:
    for seed in range(8):
        law = table(seed)
        for n in (1, 2, 7, 40):
            outcome = run(law, n, values={"key": key, "branch_width": width})
            assert outcome.texts == reference(law, n, key, width)


@pytest.mark.parametrize("key", KEYS)
def test_a_smaller_n_is_a_prefix(key: str) -> None:
    law = table(3)
    everything = run(law, 64, values={"key": key})
    for n in range(1, 41):
        some = run(law, n, values={"key": key})
        assert some.texts == everything.texts[:n]
        assert [c.details for c in listed(some)] == [c.details for c in listed(everything)][:n]
        assert some.report["exhausted"] == (n == 40)


@pytest.mark.parametrize("seed", range(10))
def test_the_first_is_greedy_and_seeds_do_nothing(seed: int) -> None:
    law = table(seed)
    path: Path = ()
    while not (path and path[-1] == END) and len(path) < LENGTH:
        path += (int(np.argmax(law(path))),)
    outcome = run(law, 5, seed=seed)
    assert outcome.texts[0] == path
    assert outcome.texts == run(law, 5, seed=seed + 77).texts


def test_joint_keys_never_rise_and_local_ones_do() -> None:
    rising = {key: False for key in KEYS}
    for seed in range(10):
        for key in KEYS:
            keys = [choice.details["key"] for choice in listed(run(table(seed), 40, values={"key": key}))]
            assert keys[0] is None
            rising[key] |= any(b > a for a, b in itertools.pairwise(keys[1:]))
    assert rising == {"local": True, "joint": False}


@pytest.mark.parametrize("key", KEYS)
def test_details_say_where_a_choice_comes_from(key: str) -> None:
    law = table(4)
    choices = listed(run(law, 40, values={"key": key}))
    for index, choice in enumerate(choices):
        depth, details = choice.details["branch_depth"], choice.details
        assert details["pop_index"] == index
        if index:
            shared = max(len(_common(choice.ids, other.ids)) for other in choices[:index])
            assert shared == depth
            first = 0 if key == "joint" else depth
            expected = logprob(law, choice.ids[: depth + 1]) - logprob(law, choice.ids[:first])
            assert details["key"] == pytest.approx(expected, abs=2**-16)
            assert details["key"] * 2**16 == round(details["key"] * 2**16)


def _common(one: Path, other: Path) -> Path:
    return tuple(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def test_ties_go_to_the_lower_id_then_to_the_earlier_leaf() -> None:
    flat = decode(Priority(), lambda path: [0, 0, 0], n=9, max_tokens=2, values={"branch_width": 3})
    assert flat.texts == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 1), (0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize(("apart", "order"), [(1e-6, [1, 2, 3]), (1e-4, [1, 3, 2])])
def test_keys_less_than_a_step_apart_are_equal(apart: float, order: list[int]) -> None:
    outcome = run(lambda path: [9, 0, 0, 0] if path else [0, 5, 1, 1 + apart], 3, length=2)
    assert [text[0] for text in outcome.texts] == order


# --- cost


def test_nothing_shared_is_computed_twice_and_branches_are_let_go() -> None:
    law = table(5)
    outcome = run(law, 8, length=12, ending=())
    assert outcome.computed == sum(len(c.ids) - c.details["branch_depth"] - 1 for c in listed(outcome))
    assert outcome.passes == sum(len(c.ids) - c.details["branch_depth"] for c in listed(outcome)) - 7
    assert max(outcome.live) <= 8 + 1


def test_only_branches_with_leaves_to_come_are_kept() -> None:
    """Late near-ties only: of forty choices' branches, few are needed again."""
    law = lambda path: [0, -1 - 0.01 * len(path), -90, -90]  # noqa: E731
    outcome = run(law, 8, length=8, ending=(), values={"key": "local", "branch_width": 2})
    assert len(outcome.texts) == 8 and outcome.live[-1] <= 8


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("parallel", [2, 3, 8])
def test_several_leaves_at_once(key: str, parallel: int) -> None:
    law = table(6)
    outcome = run(law, 64, values={"key": key, "parallel": parallel})
    assert set(outcome.texts) == leaves()
    assert outcome.report["order"] == "approximate" and outcome.report["exhausted"]
    assert [choice.details["pop_index"] for choice in listed(outcome)] == list(range(40))
    one_by_one = run(law, 64, values={"key": key}).passes
    assert outcome.passes <= one_by_one and (outcome.passes < one_by_one or parallel < 8)
    some = run(law, 7, values={"key": key, "parallel": parallel})
    assert some.texts == outcome.texts[:7]


# --- what a client sees meanwhile


def shown_by_step(n: int, law: Any, values: dict[str, Any], length: int = LENGTH) -> list[list[tuple[int, int, bool]]]:
    """(choice, tokens so far, whether it has ended) of what is said at every step."""
    filled = with_defaults(Priority(), {"branch_width": V, **values})
    limits = Limits(length, 0, frozenset({END}), (), PIECES, FACTS.special_ids)
    task = Task(filled, n, (0,), limits, Stream(0, 0), FACTS)
    running, said, counts = Priority().run(task), [], dict.fromkeys(range(n), 0)
    asked = next(running)
    while asked is not None:
        rows = torch.tensor(np.array([law(tuple(branch.ids)) for branch in asked]), dtype=torch.float32)
        asked = next_or_none(running, Rows(rows, rows, [-1] * len(asked)))
        step = []
        for shown in task.take():
            counts[shown.choice] += len(shown.tokens)
            step.append((shown.choice, counts[shown.choice], shown.end is not None))
        said.append(step)
    return said


def next_or_none(running: Any, rows: Rows) -> Any:
    try:
        return running.send(rows)
    except StopIteration:
        return None


def test_streams_token_by_token() -> None:
    law = lambda path: [0, 3, 2, 1] if len(path) else [-90, 3, 2, 1]  # noqa: E731
    said = shown_by_step(2, law, {})
    assert said == [[(0, 1, False)], [(0, 2, False)], [(0, 3, True)], [(1, 2, False)], [(1, 3, True)]]
    assert shown_by_step(2, law, {"dedupe": "text"}) == [[], [], [(0, 3, True)], [], [(1, 3, True)]]
    assert shown_by_step(1, law, {"regex": "[ab]*"}) == [[], [], [(0, 3, True)]]


def test_choices_popped_together_stream_side_by_side() -> None:
    law = lambda path: [0, 3, 2, 1] if len(path) else [1.5, 3, 2, 1]  # noqa: E731
    said = shown_by_step(4, law, {"parallel": 3, "key": "joint"})
    numbers = [choice for step in said[3:] for choice, *_ in step]
    assert set(numbers) == {1, 2, 3} and len(said[3]) == 3
    for choice in range(4):
        counts = [count for step in said for number, count, _ in step if number == choice]
        assert counts == sorted(set(counts))


# --- regex

REGEXES = ["a*", "(ab)+", "a|bb?", "[ab]{2}", "(a|b)*b", "b(ab)?", ""]


def text(path: Path) -> bytes:
    return b"".join(PIECES[token] for token in path if token != END)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("regex", REGEXES)
def test_the_leaves_in_the_language(regex: str, renormalise: bool, key: str) -> None:
    values = {"regex": regex, "regex_renormalise": renormalise, "key": key}
    law = table(7)
    outcome = run(law, 100, model=FACTS, values=values)
    found = {choice.ids for choice in listed(outcome) if not choice.details.get("incomplete")}
    assert found == {path for path in leaves() if re.fullmatch(regex.encode(), text(path))}
    for choice in listed(outcome):
        if choice.details.get("incomplete"):
            assert choice.end is not None and choice.end.reason == "length"
            assert not re.fullmatch(regex.encode(), text(choice.ids))
    some = run(law, 3, model=FACTS, values=values)
    assert some.texts == outcome.texts[:3]


@pytest.mark.parametrize("key", KEYS)
def test_keys_under_a_regex(key: str) -> None:
    """Not renormalised, a token's key is its probability; renormalised, its share of what may follow."""
    law = table(8)

    def valid(path: Path) -> bool:
        if END in path:
            return bool(re.fullmatch(b"(ab|b)*", text(path)))
        return any(re.fullmatch(b"(ab|b)*", text(path) + more) for more in (b"", b"b"))

    plain = run(law, 100, model=FACTS, values={"regex": "(ab|b)*", "key": key})
    assert plain.texts == reference(law, 100, key, V, valid)
    shares = run(law, 100, model=FACTS, values={"regex": "(ab|b)*", "key": key, "regex_renormalise": True})
    for choice in listed(shares)[1:]:
        depth, expected = choice.details["branch_depth"], 0.0
        for at in range(0 if key == "joint" else depth, depth + 1):
            row = np.array(law(choice.ids[:at]), float)
            may = [t for t in range(V) if valid((*choice.ids[:at], t))]
            expected += row[choice.ids[at]] - np.logaddexp.reduce(row[may])
        assert choice.details["key"] == pytest.approx(expected, abs=2**-15)


def test_everything_allowed_changes_nothing() -> None:
    law = table(9)
    free, bound = run(law, 20), run(law, 20, model=FACTS, values={"regex": "[ab]*"})
    assert free.texts == bound.texts and free.report == bound.report
    assert [c.details for c in listed(free)] == [c.details for c in listed(bound)]


def test_a_dead_end_is_dropped() -> None:
    """There is no 'q': a text that begins with 'b' cannot match. What follows it is not returned, all else is."""
    facts = ModelFacts([b"<end>", b"a", b"b", b"b"], frozenset({END}))
    law = lambda path: [0, 1, 2, 3]  # noqa: E731
    outcome = run(law, 10, model=facts, values={"regex": "bq|aa?"})
    assert outcome.texts == [(1, 1, END), (1, END)]
    assert outcome.report["dead_ends"] == 2 and outcome.report["exhausted"]
    assert outcome.report["pops"] == 4


def test_masks_and_a_regex_that_leave_nothing() -> None:
    """A stage forbids what the regex asks for."""
    stages = lambda path, row: [-math.inf if token == 2 else value for token, value in enumerate(row)]  # noqa: E731
    outcome = run(table(1), 10, model=FACTS, stages=stages, values={"regex": "b+|a+b"})
    whole = {text(choice.ids) for choice in listed(outcome) if not choice.details.get("incomplete")}
    assert whole == {b"ab", b"aab", b"aaab"} and outcome.report["dead_ends"] == 0
    assert run(table(1), 10, model=FACTS, stages=stages, values={"regex": "b+"}).texts == []


def test_a_match_ends_by_itself_where_no_token_may_end_it() -> None:
    outcome = run(table(2), 10, ending=(), model=FACTS, values={"regex": "ab|b"}, length=5)
    assert {text(path) for path in outcome.texts} == {b"ab", b"b"} and len(outcome.texts) == 3
    assert all(choice.end is not None and choice.end.reason == "stop" for choice in listed(outcome))


# --- rows without a token


def test_an_emptied_row() -> None:
    """Before anything of it has been shown a choice is dropped; after that it ends with an error."""
    law = lambda path: [-math.inf] * V if path[:1] == (2,) else [0, 3, 2, 1]  # noqa: E731
    outcome = run(law, 100)
    assert not any(path[0] == 2 for path in outcome.texts) and outcome.report["dead_ends"] == 1
    late = run(lambda path: [-math.inf] * V if path == (1, 1) else [0, 3, 2, 1], 3)
    assert listed(late)[0].ids == (1, 1) and listed(late)[0].end == DEAD_END
    assert len(late.texts) == 3
    assert run(lambda path: [-math.inf] * V, 3).texts == []


# --- texts


def test_choices_of_different_text() -> None:
    law = table(10, spread=0.3)
    outcome = run(law, 100, model=FACTS, values={"dedupe": "text"})
    texts = [text(path) for path in outcome.texts]
    assert len(set(texts)) == len(texts) and set(texts) == {text(path) for path in leaves()}
    assert outcome.report["duplicates"] == outcome.report["pops"] - len(texts) > 0
    tokens = run(law, 100, model=FACTS)
    first: dict[bytes, Path] = {}
    for path in tokens.texts:
        first.setdefault(text(path), path)
    assert outcome.texts == list(first.values())
    assert run(law, 4, model=FACTS, values={"dedupe": "text"}).texts == outcome.texts[:4]


def test_a_budget_of_pops() -> None:
    """Every token is the same text: no more than 4 n leaves are looked at."""
    facts = ModelFacts([b"a"] * V)
    outcome = run(table(11), 3, ending=(), model=facts, values={"dedupe": "text"})
    assert len(outcome.texts) == 1
    assert outcome.report == {"exhausted": False, "order": "exact", "pops": 12, "dead_ends": 0, "duplicates": 11}


def test_texts_end_at_a_stop() -> None:
    facts = ModelFacts([b"<end>", b"a", b".", b".b"], frozenset({END}))
    law = lambda path: [-math.inf, 0, 0, 0]  # noqa: E731
    outcome = run(law, 20, model=facts, stops=[b"."], values={"dedupe": "text"}, length=2)
    assert outcome.texts == [(1, 1), (2,), (1, 2)]


# --- requests


def refused(values: dict[str, Any], match: str, param: str, **setting: Any) -> None:
    filled = with_defaults(Priority(), values)
    with pytest.raises(SamplerError, match=match) as caught:
        Priority().check(filled, Setting(**{"n": 2, "max_tokens": 5, **setting}))
    assert caught.value.param == param


def test_refusals() -> None:
    refused({}, "temperature 1", "temperature", temperature=0.7)
    refused({}, "cannot be combined", "draw", draw="gumbel")
    refused({}, "at most 128", "n", n=MOST_CHOICES + 1)
    refused({"dedupe": "text"}, "text of this model", "dedupe")
    refused({"regex_renormalise": True}, "needs a 'regex'", "regex_renormalise")
    Priority().check(with_defaults(Priority(), {"dedupe": "text"}), Setting(128, 5, model=FACTS))


@pytest.mark.parametrize(("value", "match"), [(3, "string"), (["a"], "string"), ("(", "unclosed"), ("a(?!b)", "look")])
def test_refused_expressions(value: Any, match: str) -> None:
    with pytest.raises(SamplerError, match=match) as caught:
        Priority().parse("regex", value, "sampler.regex", FACTS)
    assert caught.value.param == "sampler.regex"


def test_parses_expressions() -> None:
    assert Priority().parse("regex", "a+", "regex", FACTS) == "a+"
    assert Priority().parse("regex", None, "regex", NO_FACTS) is None
    with pytest.raises(SamplerError, match="text is known"):
        Priority().parse("regex", "a+", "regex", NO_FACTS)


def test_registered() -> None:
    assert isinstance(PROGRAMS.get("priority"), Priority)


def test_random_worlds_end_and_agree_with_themselves() -> None:
    rng = random.Random(0)
    for seed in range(20):
        values = {
            "key": rng.choice(KEYS),
            "branch_width": rng.randint(2, 5),
            "parallel": rng.randint(1, 4),
            "dedupe": rng.choice(["tokens", "text"]),
            "regex": rng.choice([None, "(a|b)*", "a*b?"]),
        }
        n, least = rng.randint(1, 20), rng.randint(0, 2)
        one, other = (
            run(table(seed), n, model=FACTS, values=values, min_tokens=least, seed=s) for s in (seed, seed + 1)
        )
        assert one.texts == other.texts
        assert all(END not in ids or len(ids) > least for ids in one.texts)
