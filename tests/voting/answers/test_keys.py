"""Rungs 0 to 2: normalised strings, exact numbers and options as canonical keys."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplers.contract import SamplerError
from voting.answers.equivalence import Equivalence, read_equivalence
from voting.answers.normal import normalise
from voting.answers.rational import rational

SAFE_S = 20


def key(answer: str, equiv: Any = "exact", option: bool = False) -> str:
    return read_equivalence(equiv).keys([(answer, option)])[0].text


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("  12 ", "12"),
        ("$12$", "12"),
        ("$$ 12 $$", "12"),
        (r"\( 12 \).", "12"),
        (r"\[12.\]", "12"),
        ("$5", "$5"),
        ("$", "$"),
        ("Paris.", "Paris"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\tfrac12", r"\frac12"),
        (r"\left(1,\,2\right)", "(1,2)"),
        (r"\leftarrow \right]", r"\leftarrow ]"),
        (r"1\\,2", r"1\\,2"),
        (r"1\!000\;", "1000"),
        ("a \n\t b", "a b"),
        ("\u22125 \u2013 2", "-5 - 2"),
        ("\uff11\uff12", "12"),
        ("\ufb01ne", "fine"),
        ("1,234,567.80", "1234567.80"),
        ("-1,234", "-1234"),
        ("12,34", "12,34"),
        ("(1,234)", "(1,234)"),
        ("10²", "10^{2}"),
        ("x₁", "x_{1}"),
        ("½", "1/2"),
        ("1½", "1 1/2"),
        (".", ""),
        ("", ""),
    ],
)
def test_normal_forms(answer: str, normal: str) -> None:
    assert normalise(answer) == normal


@pytest.mark.parametrize(
    "spellings",
    [
        ("0.5", "1/2", "2/4", r"\frac{1}{2}", r"\dfrac{2}{4}", "$.5$", "+0.50", "5e-1", "50%", r"50\%", "50 %", "½"),
        ("1500", "1,500", "1.5e3", r"1.5 \times 10^{3}", "1.5 × 10^3", "1500.", "3000/2", "1.5E+3"),
        ("-1/3", r"-\frac{1}{3}", r"\frac{-1}{3}", "\u22121/3", "- 1/3"),
        ("0", "-0", "0.0", "0/7", "0%", "0e400"),
        ("15000", "1.5e4", "150*10^2"),
    ],
)
def test_numbers_are_equal_exactly(spellings: tuple[str, ...]) -> None:
    assert len({key(one) for one in spellings}) == 1
    assert len({key(one, "string") for one in spellings}) > 1


@pytest.mark.parametrize(
    "different",
    [
        ("1/3", "0.333", "0.3333333333333333333333333333333", "33%"),
        ("0.5", "50", "5000", "1/0", "0/0", r"\frac{1}{0}", "2/1"),
        ("10²", "102", "210", "10^2"),
        ("1½", "11/2"),
        ("B", "b"),
        ("9007199254740993", "9007199254740992"),
        ("1e400", "1e401", "1e-400", "1e-401"),
        ("1" * 400, "1" * 400 + ".0"),
        ("9**9**9**9", "387420489**81", "9^9"),
        ("१", "1"),
        ("1_000", "1000"),
    ],
)
def test_what_is_different_stays_different(different: tuple[str, ...]) -> None:
    assert len({key(one) for one in different}) == len(different)


def test_percent() -> None:
    value, unit = "exact", {"name": "exact", "percent": "unit"}
    assert key("50%", value) == key("0.5") != key("50", value)
    assert key("50%", unit) == key("50", unit) != key("0.5", unit)


def test_options_are_one_in_either_case() -> None:
    assert key("b", option=True) == key("B", option=True) == "B"
    assert key("b", "string", option=True) != key("B", "string", option=True)
    exact = Equivalence()
    mixed = exact.keys([("b", False), ("b", True), ("B", True), ("B", False)])
    assert {one.text for one in mixed} == {"B"}  # else rung 2 would split what rung 0 merges


NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.tuples(st.integers(-999, 999), st.integers(0, 99)).map(lambda pair: f"{pair[0]}.{pair[1]:02d}"),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.tuples(st.integers(-99, 99), st.integers(-3, 3)).map(lambda pair: f"{pair[0]}e{pair[1]}"),
)


@given(st.lists(NUMBERS, max_size=12))
def test_keys_of_numbers_are_equal_where_the_numbers_are(answers: list[str]) -> None:
    texts = [one.text for one in Equivalence().keys((answer, False) for answer in answers)]
    for one, text in zip(answers, texts, strict=True):
        for other, other_text in zip(answers, texts, strict=True):
            assert (text == other_text) == (Fraction(one) == Fraction(other))


@given(NUMBERS)
def test_a_key_is_its_own_key(answer: str) -> None:
    assert key(key(answer)) == key(answer)


@given(st.text(max_size=20))
def test_delimiters_and_white_space_say_nothing(answer: str) -> None:
    normal = normalise(answer)
    for wrapped in (f"${answer}$", rf"\( {answer} \)", rf" \[{answer}\] ", f"{answer}.", f"\n{answer}\t"):
        if not answer.endswith("\\") and "\\" not in answer[:1] and answer[:1] not in ",!;":
            assert normalise(wrapped) == normal


def test_numbers_have_limits() -> None:
    def read(text: str) -> Fraction | None:
        return rational(text, percent_is_value=True)

    assert read("1" * 400) == int("1" * 400)
    assert read("1" * 401) is None
    assert read("1e400") == 10**400
    assert read("1e401") is None
    assert read("1e-401") is None
    assert read("1e" + "9" * 300) is None


@pytest.mark.parametrize(
    "hostile",
    [
        "9**9**9**9",
        "9^{9^{9^9}}",
        "7" * 100_000,
        "1e" + "9" * 100_000,
        "1," * 50_000,
        "1" + ",234" * 25_000,
        "{" * 100_000,
        r"\frac{" * 16_000,
        "$" * 100_000,
        r"\(" * 25_000 + r"\)" * 25_000,
        ". " * 50_000,
        "\u00b2" * 100_000,
        "\ufdfa" * 20_000,
        "__import__('os').system('true')",
    ],
)
def test_hostile_answers_are_strings(hostile: str) -> None:
    start = time.monotonic()
    (one,) = Equivalence().keys([(hostile, False)])
    assert one.number is None or hostile.startswith("1,")
    assert time.monotonic() - start < SAFE_S


@pytest.mark.parametrize(
    ("equiv", "field"),
    [
        (1, ""),
        ("same", ""),
        ({}, ".name"),
        ({"name": "exact", "percent": "half"}, ".percent"),
        ({"name": "string", "percent": "unit"}, ".percent"),
        ({"name": "exact", "symmetric": "or"}, ".symmetric"),
        ({"name": "math_verify", "symmetric": "xor"}, ".symmetric"),
        ({"name": "math_verify", "equiv_budget_ms": -1}, ".equiv_budget_ms"),
        ({"name": "math_verify", "equiv_budget_ms": 60_001}, ".equiv_budget_ms"),
        ({"name": "math_verify", "rungs": 3}, ".rungs"),
    ],
)
def test_errors_name_the_field(equiv: Any, field: str) -> None:
    with pytest.raises(SamplerError) as error:
        read_equivalence(equiv)
    assert error.value.param == f"voting.equiv{field}"


def test_levels() -> None:
    assert read_equivalence("exact") == Equivalence()
    assert read_equivalence("string") == Equivalence(numbers=False)
    assert read_equivalence("published") == Equivalence(percent="published")
    given = {"name": "math_verify", "percent": "unit", "symmetric": "or", "equiv_budget_ms": 1500}
    assert read_equivalence(given) == Equivalence(True, "unit", True, "or", 1.5)
