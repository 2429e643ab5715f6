"""Answers are found where voting.md section 17 says, and nothing that a model or a request writes takes long."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplers.contract import SamplerError
from voting.answers.extraction import Extracted, read_extraction
from voting.answers.finders import last_boxed, lists_options

SAFE_S = 20  # far above what any of this takes; a quadratic step on these inputs takes longer


def found(extract: Any, text: str, **setting: Any) -> str | None:
    answer = read_extraction(extract).answer(text, **setting)
    return answer and answer.answer


@pytest.mark.parametrize(
    ("extract", "text", "answer"),
    [
        ("hash", "5 + 5 = 10\n#### 10\nDone", "10"),
        ("hash", "#### 1\n####  2 apples ", "2 apples"),
        ("hash", "#### \n12", None),
        ("hash", "12", None),
        ("code", "```python\na = 1\n```\ntext\n```\nb = 2\n```\n", "b = 2"),
        ("code", "````\n```\ninner\n```\n````", "```\ninner\n```"),
        ("code", "~~~\nx\n~~~", "x"),
        ("code", "```\r\nx\r\n```\r\n", "x"),
        ("code", "``` `x` ```", None),
        ("code", "```\na\n```\n```\nb", None),
        ("code", "```\n```", None),
        ("boxed", r"so \boxed{1} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("boxed", r"\boxed {\{1, 2\}}", r"\{1, 2\}"),
        ("boxed", r"\boxed{\{}", r"\{"),
        ("boxed", r"\boxed{1} \boxed{2", None),
        ("boxed", r"\boxed{a \\} b", r"a \\"),
        ("boxed", r"\boxed{ }", None),
        ("boxed", r"\boxed{$.$}", None),
        ("boxed", "1", None),
        ("last_number", "1, 2 and then -3.5.", "-3.5"),
        ("last_number", "it costs 1,234,567.89 in all", "1,234,567.89"),
        ("last_number", "about 50% of it", "50%"),
        ("last_number", "that is 3/4 of it", "3/4"),
        ("last_number", "10-5", "5"),
        ("last_number", "x = \u22125", "\u22125"),
        ("last_number", "1.5e-3 m", "1.5e-3"),
        ("last_number", "none", None),
        ("mcq", "The answer is (C).", "C"),
        ("mcq", "(A) is wrong and (B) too. Answer: **d**", "D"),
        ("mcq", "The answer is B because of that.", "B"),
        ("mcq", "The answer is option (e)", "E"),
        ("mcq", "The answer is A", "A"),
        ("mcq", "The answer is A big surprise", None),
        ("mcq", r"so \boxed{\text{(B)}} it is", "B"),
        ("mcq", "let me think\nC) 42", "C"),
        ("mcq", "f", "F"),
        ("mcq", "First (A) and then I choose (B) instead of that", "B"),
        ("mcq", "K", None),
        ("mcq", "I think so", None),
        ({"regex": r"x=(\d+)"}, "x=1 x=2 y=3", "2"),
        ({"regex": r"x=(\d+)", "group": 0}, "x=1 x=2 y=3", "x=2"),
        ({"regex": r"\d+"}, "12 345 x", "345"),
        ({"regex": r"(a)|b"}, "a b", None),
        ({"regex": r"(?i)^total: (.*)$"}, "Total: 1\nTotal: 2", None),
        ({"regex": r"(?im)^total: (.*)$"}, "Total: 1\nTotal: zwölf", "zwölf"),
        ({"regex": r"(?m)^(.*)$"}, "a\nb", "b"),
        ({"regex": r"(?m)^(.*)$"}, "a\nb\n\n", "b"),
        ({"regex": r"\Qa.b"}, "a.b axb", "a.b"),
        ({"regex": r"\d+"}, "none", None),
        ({"regex": "(x?)y"}, "y", None),
        ({"json_path": "$.answer"}, '{"answer": "yes"}', "yes"),
        ({"json_path": "$.a[-1]['b c']"}, '{"a": [1, {"b c": 0.10}]}', "0.10"),
        ({"json_path": '$["a\\u0062"]'}, '{"ab": true}', "true"),
        ({"json_path": "$['it\\'s \"x\"']"}, '{"it\'s \\"x\\"": 1}', "1"),
        ({"json_path": "$ .a [ 0 ]"}, '{"a": [12345678901234567890.5]}', "12345678901234567890.5"),
        ({"json_path": "$"}, '{"b": [1, "x", null], "a": 1e400}', '{"a":1e400,"b":[1,"x",null]}'),
        ({"json_path": "$.a"}, 'so\n```json\n{"a": 1}\n```\n', "1"),
        ({"json_path": "$.a"}, 'so the answer is\n{"a": 1}\n', "1"),
        ({"json_path": "$.a"}, '{"a": null}', None),
        ({"json_path": "$.a"}, '{"b": 1}', None),
        ({"json_path": "$.a.b"}, '{"a": "b"}', None),
        ({"json_path": "$[0]"}, '{"0": 1}', None),
        ({"json_path": "$.a"}, '{"a": NaN}', None),
        ({"json_path": "$.a"}, "no JSON", None),
        ("whole", "  Paris \n", "Paris"),
        ("whole", " . ", None),
        ("auto", "#### 1\n\\boxed{2} the answer is 3", "1"),
        ("auto", "the answer is 3, no: \\boxed{2}", "2"),
        ("auto", "The answer is 1. No, the final answer is $\\frac{1}{2}$. I hope so.", "$\\frac{1}{2}$"),
        ("auto", "**Answer:** 3.5 km\n42", "3.5 km"),
        ("auto", "The answer is:\n\n12", "12"),
        ("auto", "it is (B) or 3", None),
        ({"name": "auto", "allow_last_number": True}, "it is (B) or 3", "3"),
        ({"name": "hash"}, "#### 1", "1"),
    ],
)
def test_answers(extract: Any, text: str, answer: str | None) -> None:
    assert found(extract, text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is (b).", Extracted("B", True)),
        (r"\boxed{\text{B}}", Extracted("B", True)),
        ("#### B. 42", Extracted("B", True)),
        ("I would go for (C)", Extracted("C", True)),
        (r"\boxed{42}", Extracted("42", False)),
        ("nothing", None),
    ],
)
def test_auto_reads_options_where_the_prompt_lists_them(text: str, answer: Extracted | None) -> None:
    assert read_extraction("auto").answer(text, lists_options=True) == answer


def test_letters_are_options_only_where_the_prompt_lists_them() -> None:
    assert read_extraction("auto").answer(r"\boxed{B}") == Extracted("B", False)
    assert read_extraction("mcq").answer("B") == Extracted("B", True)


@pytest.mark.parametrize(
    ("prompt", "listed"),
    [("Which?\nA) 1\nB) 2", True), ("(A) 1 (B) 2", True), ("A. x\nB. y", True), ("A: x", False), ("A or B?", False)],
)
def test_prompts_that_list_options(prompt: str, listed: bool) -> None:
    assert lists_options(prompt) is listed


def test_reasoning_is_not_searched() -> None:
    text = "#### 1</think>so it is\n"
    assert found("hash", text) == "1</think>so it is"
    assert found("hash", text, end_of_reasoning="</think>") is None
    assert found("hash", text + "#### 2", end_of_reasoning="</think>") == "2"
    assert found("hash", "#### 3", end_of_reasoning="</think>") == "3"


@pytest.mark.parametrize(
    ("extract", "field"),
    [
        (3, ""),
        (None, ""),
        (["boxed"], ""),
        ("box", ""),
        ({}, ".name"),
        ({"name": 1}, ".name"),
        ({"name": "box"}, ".name"),
        ({"name": "boxed", "group": 1}, ".group"),
        ({"name": "boxed", "allow_last_number": True}, ".allow_last_number"),
        ({"name": "auto", "allow_last_number": 1}, ".allow_last_number"),
        ({"name": "auto", "regex": "a"}, ".regex"),
        ({"regex": "a", "json_path": "$"}, ".json_path"),
        ({"regex": ""}, ".regex"),
        ({"regex": 1}, ".regex"),
        ({"regex": "("}, ".regex"),
        ({"regex": r"(a)\1"}, ".regex"),
        ({"regex": "a)(b"}, ".regex"),
        ({"regex": "\ud800"}, ".regex"),
        ({"regex": "a" * 1001}, ".regex"),
        ({"regex": "[ab]{600}[cd]{600}"}, ".regex"),
        ({"regex": "((((a{100}){100}){100}){100})"}, ".regex"),
        ({"regex": "(a)", "group": 2}, ".group"),
        ({"regex": "(a)", "group": -1}, ".group"),
        ({"regex": "(a)", "group": "1"}, ".group"),
        ({"regex": "(a)", "flags": "i"}, ".flags"),
        ({"json_path": "a"}, ".json_path"),
        ({"json_path": "$..a"}, ".json_path"),
        ({"json_path": "$.*"}, ".json_path"),
        ({"json_path": "$[?@.a]"}, ".json_path"),
        ({"json_path": "$[0:1]"}, ".json_path"),
        ({"json_path": "$[01]"}, ".json_path"),
        ({"json_path": "$['\\x']"}, ".json_path"),
        ({"json_path": "$.a "}, ".json_path"),
        ({"json_path": "$" + "[0]" * 1000}, ".json_path"),
    ],
)
def test_errors_name_the_field(extract: Any, field: str) -> None:
    with pytest.raises(SamplerError) as error:
        read_extraction(extract)
    assert error.value.param == f"voting.extract{field}"


def test_null_is_as_if_left_out() -> None:
    assert found({"regex": "(a)", "group": None, "name": None}, "a") == "a"


EXPRESSIONS = (
    "a",
    "ab?",
    "(a|ab)(c?)",
    "b+?",
    "[ab]{2}",
    "(?:ab|a)c?",
    "^a+",
    r"\bab\b",
    "c|(?:a*b)",
    "(?s).b",
    "c.a",
    "a*",
    "a??",
    "|b",
    "(?m)^a*",
)


@given(st.sampled_from(EXPRESSIONS), st.text("abc \n", max_size=12))
def test_the_last_match_is_the_one_that_searching_one_by_one_ends_with(regex: str, text: str) -> None:
    matches = [match[0] for match in re.finditer(regex, text) if match[0]]
    assert found({"regex": regex, "group": 0}, text) == (matches[-1] if matches else None)


@given(st.lists(st.sampled_from((r"\boxed{", "{", "}", "\\{", "\\}", "\\\\", "a")), max_size=12))
def test_boxes_are_balanced(parts: list[str]) -> None:
    text = "".join(parts)
    start = text.rfind(r"\boxed{")
    inside = text[start + 7 :]
    bare = re.sub(r"\\.", "__", inside)  # of equal length, escapes gone
    ends = [end for end in range(len(bare)) if bare[end] == "}" and bare[:end].count("{") == bare[:end].count("}")]
    assert last_boxed(text) == ((inside[: ends[0]].strip() or None) if start >= 0 and ends else None)


HOSTILE = {
    "digits": "7" * 100_000,
    "groups": "1" + ",234" * 25_000 + "5",
    "boxes": r"\boxed{" * 15_000,
    "braces": r"\boxed{" + "{" * 50_000 + "}" * 50_000,
    "fences": "```\n" * 25_001,
    "hashes": "#" * 100_000,
    "phrases": "answer is " * 10_000,
    "phrase": "answer" + " " * 100_000,
    "answers": ("answer" + " " * 50) * 2_000,
    "delimiters": "$" * 50_000 + "x" + "$" * 50_000,
    "lines": "\n" * 100_000,
    "brackets": "[" * 100_000,
    "objects": '{"a":' * 20_000,
    "backslashes": "\\" * 100_001,
    "surrogates": "\ud800" * 1_000,
    "as": "a" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_harmless(name: str) -> None:
    names = ("hash", "code", "boxed", "last_number", "mcq", "whole", "auto")
    extracts: list[Any] = [*names, {"json_path": "$.a.b"}, {"regex": r"(a+)+$|(?:a|a)*b"}, {"regex": "a.*b|a"}]
    start = time.monotonic()
    for extract in extracts:
        answer = read_extraction(extract).answer(HOSTILE[name], lists_options=True, end_of_reasoning="</think>")
        json.dumps(answer and answer.answer, ensure_ascii=False).encode()
    assert time.monotonic() - start < SAFE_S
