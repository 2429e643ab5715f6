"""Rung 3: math-verify in processes that hang, crash and are killed, and nobody else notices."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from voting.answers import math_pool
from voting.answers.math_pool import LONGEST, MathPool, SharedBudget
from voting.answers.math_worker import MEMORY_BYTES, formula

PAIR_S = 1.0  # of answers that hang; comparing others takes some 20 ms
SAFE_S = 30  # far above what a test takes unless a process that hangs is left alone
HANGS = "10^{10^{10}}"


@pytest.fixture(scope="module")
def pool() -> Iterator[MathPool]:
    with MathPool(1) as one:
        yield one


@pytest.fixture(scope="module")
def impatient() -> Iterator[MathPool]:
    with MathPool(1, PAIR_S) as one:
        yield one


def equal(pool: MathPool, *keys: str, symmetric: str = "and") -> set[tuple[int, int]]:
    """Budget is no matter."""
    found = pool.compare(keys, symmetric, 10 * SAFE_S)
    assert found.complete
    return set(found.equal)


def processes() -> list[psutil.Process]:
    own = psutil.Process().children()
    return [one for one in own if any(part.endswith("math_worker.py") for part in one.cmdline())]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x^2+2x+1", "(x+1)^2"),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("1/3", "0.33333333"),
        ("x=5", "5"),
        (r"\text{red}", "red"),
    ],
)
def test_equal_formulas(pool: MathPool, one: str, other: str) -> None:
    assert equal(pool, one, other) == equal(pool, other, one) == {(0, 1)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x+1", "x+2"),
        ("1/3", "0.333"),
        ("listen", "silent"),  # products of the same letters
        ("dog bites man", "man bites dog"),
        ("9007199254740993", "9007199254740992"),  # equal as floats
        (r"\frac{1}{2", "1/2"),
        ("$1$ or $2$", "2"),
        ("", "1"),
    ],
)
def test_different_formulas(pool: MathPool, one: str, other: str) -> None:
    assert equal(pool, one, other) == set()


def test_both_orders_have_to_agree_or_one(pool: MathPool) -> None:
    assert equal(pool, "(1,2)", "1<x<2", symmetric="and") == set()
    assert equal(pool, "(1,2)", "1<x<2", symmetric="or") == {(0, 1)}
    assert equal(pool, "1<x<2", "(1,2)", symmetric="or") == {(0, 1)}


def test_positions_are_those_of_the_keys(pool: MathPool) -> None:
    keys = ("7", "x+1", r"\frac{", "1+x", "8", "y" * (LONGEST + 1), "x - (-1)")
    assert equal(pool, *keys) == {(1, 3), (1, 6), (3, 6)}


@pytest.mark.parametrize(
    "hostile",
    [
        "9**9**9**9",
        "9^{9^{9^{9}}}",
        HANGS,
        "1000000000!",
        "7" * 100_000,
        "{" * LONGEST,
        "(" * (LONGEST // 2) + ")" * (LONGEST // 2),
        r"\frac{" * (LONGEST // 6),
        r"\sqrt{" * 80 + "2" + "}" * 80,
        r"\left(" * 80,
        "x^{" * 120 + "}" * 120,
        "__import__('os')._exit(0)",
        r"\int" * 100,
        "\u202e\ud800\x00",
    ],
)
def test_hostile_answers_cost_a_time_out_at_most(impatient: MathPool, hostile: str) -> None:
    start = time.monotonic()
    assert equal(impatient, "x+1", hostile, "1+x", "2") == {(0, 2)}
    assert time.monotonic() - start < SAFE_S


def test_what_hangs_is_asked_about_once(impatient: MathPool) -> None:
    keys = (HANGS, *map(str, range(2 * SAFE_S)))
    start = time.monotonic()
    assert equal(impatient, *keys) == set()
    assert time.monotonic() - start < SAFE_S
    assert impatient.compare(keys, "and", 0.0).complete  # all of it is remembered


def test_pairs_out_of_budget_are_different(pool: MathPool) -> None:
    found = pool.compare(["a+b", "b+a"], "and", 0.0)
    assert not found.equal
    assert not found.complete
    assert equal(pool, "a+b", "b+a") == {(0, 1)}


def test_looks_at_one_vote_share_a_budget(pool: MathPool) -> None:
    budget = SharedBudget(pool)
    first = budget.compare(["y+8", "8+y"], "and", 5)
    assert (first.equal, first.complete) == ({(0, 1)}, True)
    again = budget.compare(["y+8", "8+y", "9+y"], "and", 0)
    assert (again.equal, again.complete) == ({(0, 1)}, False)
    begun = time.monotonic()
    hostile = [rf"{one}^{{{one}^{{{one}^{{9}}}}}}+y" for one in range(11, 31)]
    looks = [budget.compare(hostile[:n], "and", 1) for n in range(1, 21)]
    assert time.monotonic() - begun < 8 and not looks[-1].complete


def test_a_process_that_dies_is_replaced() -> None:
    with MathPool(1) as pool:
        assert equal(pool, "x+1", "1+x") == {(0, 1)}
        (process,) = processes_of(pool)
        os.kill(process, 9)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        assert equal(pool, "x+2", "2+x") == {(0, 1)}
        assert processes_of(pool) != [process]


def test_a_process_is_replaced_after_its_tasks() -> None:
    with MathPool(1, tasks=4) as pool:
        assert equal(pool, "x+1", "1+x") == {(0, 1)}  # two alone and one pair
        (first,) = processes_of(pool)
        assert equal(pool, "x+1", "1+x") == {(0, 1)}
        assert processes_of(pool) == [first]
        assert equal(pool, "x+2", "x+3") == set()
        assert processes_of(pool) != [first]


def test_memory_is_limited(pool: MathPool) -> None:
    pool.start()
    for process in processes_of(pool):
        assert psutil.Process(process).rlimit(psutil.RLIMIT_AS) == (MEMORY_BYTES, MEMORY_BYTES)


def test_many_threads_may_compare_at_once() -> None:
    with MathPool(2, PAIR_S) as pool, ThreadPoolExecutor(8) as threads:
        votes = [("x+1", f"x+{number % 3}", HANGS, "1+x") for number in range(8)]
        for keys, found in zip(votes, threads.map(lambda keys: equal(pool, *keys), votes), strict=True):
            assert found == {(0, 3)} | ({(0, 1), (1, 3)} if keys[1] == "x+1" else set())


def test_closing_ends_a_comparison_and_leaves_no_process() -> None:
    before = {process.pid for process in processes()}
    pool = MathPool(1, pair_s=10 * SAFE_S)
    pool.start()
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            pool.compare([HANGS, "x"], "and", 10 * SAFE_S)
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.3)
    pool.close()
    thread.join(SAFE_S)
    assert not thread.is_alive()
    assert failures
    assert {process.pid for process in processes()} <= before
    with pytest.raises(RuntimeError):
        pool.compare(["x", "y"])
    pool.close()  # again, as `with` does


def test_without_math_verify_nothing_is_equal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(math_pool, "_PROGRAM", Path(__file__).with_name("missing.py"))
    with MathPool(1, PAIR_S) as pool:
        found = pool.compare(["x+1", "1+x"])
    assert not found.equal
    assert not found.complete
    assert "math-verify" in caplog.text


@pytest.mark.parametrize(
    ("answer", "formula_"),
    [
        ("x+1", "$x+1$"),
        ("listen", r"$\text{listen}$"),
        (r"\text{cat blue}", r"$\text{cat blue}$"),
        ("5 red apples", r"$5 \text{red apples}$"),
        (r"\begin{pmatrix}1\end{pmatrix}", r"$\begin{pmatrix}1\end{pmatrix}$"),
        (r"\sin x + xy", r"$\sin x + xy$"),
    ],
)
def test_words_are_names(answer: str, formula_: str) -> None:
    assert formula(answer) == formula_


def processes_of(pool: MathPool) -> list[int]:
    return [worker._process.pid for worker in pool._workers if worker._process is not None]
