"""Programs that a person helps to choose from, test by test."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplers.contract import SamplerError
from voting.code_session import CodeSession
from voting.pass_matrix import Group, PassMatrix
from voting.verdicts import UnknownTarget, Verdict, VoteClosed, replay

MATRIX = ((1, 1, 0), (1, 0, 1), (1, 1, 0), (0, 0, 0))
ROWS = st.integers(1, 5).flatmap(
    lambda tests: st.lists(st.lists(st.booleans(), min_size=tests, max_size=tests), min_size=1, max_size=6)
)


def session(rows: tuple[tuple[int, ...], ...] = MATRIX, **fields: int) -> CodeSession:
    codes = tuple(f"code {i}" for i in range(len(rows)))
    expected = tuple(f"out {i}" for i in range(len(rows[0])))
    return CodeSession(codes, tuple(range(len(rows))), expected, PassMatrix.of(rows), **fields)


def on_test(verdict: str, test: int, value: str | None = None, column: tuple[bool, ...] | None = None) -> Verdict:
    return Verdict("test", test, verdict, value, 0.0, "ann", column)


def on_group(verdict: str, code: int, value: str | None = None) -> Verdict:
    return Verdict("cluster", code, verdict, value, 0.0, "ann")


def test_groups_and_their_scores() -> None:
    assert PassMatrix.of(MATRIX).groups() == [Group((0, 2), 4), Group((1,), 2), Group((3,), 0)]
    found = session().report()
    assert (found["answer"], found["confidence"], found["next_test"]) == ("code 0", 4 / 6, 1)
    assert [row["id"] for row in found["clusters"]] == [0, 1, 3]


def test_a_validated_test_is_hard() -> None:
    after = session().after(on_test("accept", 2))
    assert after.matrix.groups() == [Group((0, 2), 0), Group((1,), 2), Group((3,), 0)]
    assert (after.answer, after.ask) == ("code 1", None)  # one group is left


def test_a_rejected_test_says_nothing() -> None:
    after = session().after(on_test("reject", 1))
    assert after.matrix.groups() == [Group((0, 2), 2), Group((1,), 2), Group((3,), 0)]
    assert after.answer == "code 0"
    joined = after.after(on_test("reject", 2))
    assert joined.matrix.groups() == [Group((0, 1, 2), 3), Group((3,), 0)]


def test_a_corrected_test_is_run_again_and_hard() -> None:
    after = session().after(on_test("correct", 0, "new", (False, True, False, False)))
    assert after.expected == ("new", "out 1", "out 2")
    assert after.matrix.groups() == [Group((0, 2), 0), Group((1,), 2), Group((3,), 0)]
    for column in (None, (True,)):
        with pytest.raises(SamplerError, match="one for each of 4 codes"):
            session().after(on_test("correct", 0, "new", column))


@given(ROWS)
def test_the_next_test_is_closest_to_one_half(rows: list[list[bool]]) -> None:
    matrix = PassMatrix.of(rows)
    scored = [group for group in matrix.groups() if group.score]
    found = matrix.next_test()
    if len(scored) < 2:
        assert found is None
        return
    total = sum(group.score for group in scored)
    fractions = [
        Fraction(sum(group.score for group in scored if rows[group.members[0]][test]), total)
        for test in range(len(rows[0]))
    ]
    distances = [abs(one - Fraction(1, 2)) for one in fractions]
    assert found == distances.index(min(distances))
    assert 0 < fractions[found] < 1  # it tells groups apart


@given(ROWS, st.data())
def test_asking_ends(rows: list[list[bool]], data: st.DataObject) -> None:
    state = session(tuple(tuple(map(int, row)) for row in rows))
    rounds = 0
    while (test := state.ask) is not None:
        state = state.after(on_test(data.draw(st.sampled_from(["accept", "reject"])), test))
        rounds += 1
    assert rounds <= 4
    groups = state.matrix.groups()
    assert sorted(code for group in groups for code in group.members) == list(range(len(rows)))
    assert replay(session(tuple(tuple(map(int, row)) for row in rows)), state.log) == state


def test_rounds_are_limited() -> None:
    rows = tuple(tuple(int(i >> test & 1) for test in range(6)) for i in range(64))
    for most in (1, 3):
        state = session(rows, max_rounds=most)
        for _ in range(most):
            assert state.ask is not None
            state = state.after(on_test("reject", state.ask))
        assert state.ask is None


def test_a_group_can_be_rejected_and_accepted() -> None:
    after = session().after(on_group("reject", 0))
    assert after.answer == "code 1"
    assert after.after(on_group("reject", 1)).answer is None
    accepted = after.after(on_group("accept", 0))
    assert (accepted.answer, accepted.status, accepted.ask) == ("code 0", "accepted", None)
    with pytest.raises(VoteClosed):
        accepted.after(on_test("accept", 0))


def test_codes_stay_rejected_when_groups_join() -> None:
    after = replay(session(), [on_group("reject", 0), on_test("reject", 1), on_test("reject", 2)])
    assert after.matrix.groups() == [Group((0, 1, 2), 1), Group((3,), 0)]
    assert after.answer == "code 1"


def test_correcting_the_code() -> None:
    after = session().after(on_group("correct", 0, "mine"))
    assert (after.answer, after.report()["confidence"], after.status) == ("mine", None, "corrected")
    same = session().after(on_group("correct", 0, "code 1"))
    assert (same.answer, same.report()["confidence"]) == ("code 1", 2 / 6)


def test_where_nothing_passes_there_is_no_answer() -> None:
    found = session(((0, 0), (0, 0)))
    assert (found.answer, found.ask) == (None, None)
    json.dumps(found.report(), allow_nan=False)


@pytest.mark.parametrize("verdict", [on_test("accept", 3), on_test("accept", -1), on_group("accept", 2)])
def test_unknown_targets(verdict: Verdict) -> None:
    with pytest.raises(UnknownTarget):
        session().after(verdict)


def test_a_correction_needs_a_value() -> None:
    with pytest.raises(SamplerError):
        session().after(on_test("correct", 0, None, (True,) * 4))


@pytest.mark.parametrize("rows", [[], [[True], [True, False]]])
def test_a_matrix_is_rectangular(rows: list[list[bool]]) -> None:
    with pytest.raises(ValueError, match="every test"):
        PassMatrix.of(rows)


def test_groups_are_named_by_samples() -> None:
    """Samples without a code have no place in the matrix."""
    start = CodeSession(("a", "b", "c"), (2, 5, 9), ("x",), PassMatrix.of(((0,), (1,), (1,))))
    assert [(row["id"], row["members"]) for row in start.report()["clusters"]] == [(2, [2]), (5, [5, 9])]
    assert (start.answer, start.representative, start.report()["codes"]) == ("b", 5, [2, 5, 9])
    after = start.after(on_group("reject", 5))
    assert (after.answer, after.representative, after.tie) == (None, None, False)
    assert [row["rejected"] for row in after.report()["clusters"]] == [False, True]
    assert start.after(on_group("accept", 2)).representative == 2
    assert start.after(on_group("correct", 2, "c")).representative == 9
    assert start.after(on_group("correct", 2, "d")).representative is None
    with pytest.raises(UnknownTarget):
        start.after(on_group("accept", 1))


def test_a_tie_is_reported() -> None:
    start = session(((1, 0), (0, 1)))
    assert start.report()["tie"] and not start.after(on_test("accept", 0)).report()["tie"]


def test_without_a_code_there_is_no_answer() -> None:
    start = CodeSession((), (), ("x",), PassMatrix((), 1))
    report = start.report()
    assert (report["answer"], report["clusters"], report["next_test"], report["tie"]) == (None, [], None, False)
