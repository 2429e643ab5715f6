"""A verifier that raises, or says what cannot be, ends the requests that use it, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.request import DecodeRequest, FinishReason
from samplers.chain import resolve
from spec_decode.contract import Verdict
from spec_decode.verify.token import Token
from tests.engine.speculating import Answer, ask, ask_all, one_hot_chain, scripted, speculating, table_executor
from tests.engine.test_speculation_match import TABLE, VOCABULARY

PROMPT, LENGTH, NEVER = (9, 2, 11, 9, 2), 16, 5
GUESS = [3, 4, 6]
WRONG: dict[str, Callable[[Verdict], Any]] = {
    "no verdict": lambda found: None,
    "verdicts of others": lambda found: replace(found, n_acc=found.n_acc[1:]),
    "too short a path": lambda found: replace(found, path=found.path[:, :2]),
    "no nodes": lambda found: replace(found, path=found.path * 0 + 99, n_acc=found.n_acc * 0 + 1),
    "padding for nodes": lambda found: replace(found, path=found.path * 0 - 1, n_acc=found.n_acc * 0 + 1),
    "a path from the middle": lambda found: replace(found, path=found.path * 0 + 1, n_acc=found.n_acc * 0 + 1),
    "one node for ever": lambda found: replace(found, path=found.path * 0, n_acc=found.n_acc * 0 + 2),
    "more than there is": lambda found: replace(found, n_acc=found.n_acc * 0 + 50),
    "less than nothing": lambda found: replace(found, n_acc=found.n_acc * 0 - 1),
    "no token": lambda found: replace(found, next_token=found.next_token * 0 + VOCABULARY),
    "a token below zero": lambda found: replace(found, next_token=found.next_token * 0 - 1),
    "an impossible token": lambda found: replace(found, next_token=found.next_token * 0 + NEVER),
    "half a token": lambda found: replace(found, next_token=found.next_token + 0.5),
}
WAY = {"draft": "scripted", "num_tokens": 3}
FIELDS: dict[str, Any] = {"allowed_token_ids": [token for token in range(VOCABULARY) if token != NEVER]}


def request(name: str, fields: dict[str, Any], n: int = 1) -> DecodeRequest:
    return DecodeRequest(name, PROMPT, resolve(fields, VOCABULARY), 3, LENGTH, n=n)


async def together(guess: list[int], fields: dict[str, Any] = FIELDS) -> dict[str, list[Answer]]:
    """Answers of requests under several rules, by rule; `plain` has none."""
    drafts = scripted(lambda writer, plan, noise: one_hot_chain(guess, plan))
    async with speculating(table_executor(TABLE), [drafts]) as running:
        rules = ["match", "block", "token", "rrs", "traversal"]
        asked = [request("plain", fields)]
        for rule in rules:
            spec = running.spec(WAY | {"verifier": rule}, fields)
            asked.append(replace(request(rule, fields, n=2), speculation=spec))
        found = await ask_all(running.engine, asked)
        again = await ask(running.engine, replace(asked[1], id="again"))  # all others are gone
        assert running.engine.health().ready
    assert [one.tokens for one in again] == [one.tokens for one in found[1]]
    return dict(zip(["plain", *rules], found, strict=True))


def broken(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Verdict], Any]) -> None:
    """The token rule, from its third call on."""
    verify, calls = Token.verify, []

    def wronged(*given: Any) -> Any:
        calls.append(given)
        return verify(*given) if len(calls) < 3 else wrong(verify(*given))

    monkeypatch.setattr(Token, "verify", wronged)


def others_are_unhurt(found: dict[str, list[Answer]], expected: dict[str, list[Answer]]) -> None:
    for rule, answers in found.items():
        if rule != "token":
            assert [one.tokens for one in answers] == [one.tokens for one in expected[rule]]
            assert all(one.end.reason is FinishReason.LENGTH for one in answers)


def raises(found: Verdict) -> Any:
    raise RuntimeError("injected")


@pytest.mark.parametrize("wrong", [raises, *WRONG.values()], ids=["raises", *WRONG])
async def test_what_is_wrong_with_a_rule_ends_the_requests_that_use_it(
    wrong: Callable[[Verdict], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await together(GUESS)
    broken(monkeypatch, wrong)
    found = await together(GUESS)
    others_are_unhurt(found, expected)
    for one, whole in zip(found["token"], expected["token"], strict=True):
        assert one.end.error_code == "internal_error" and "rule 'token'" in one.end.message
        assert one.tokens and one.tokens == whole.tokens[: len(one.tokens)]


@pytest.mark.parametrize(
    "fields", [FIELDS, {"bad_words_ids": [[NEVER]], "frequency_penalty": 0.1}], ids=["forgetful", "remembering"]
)
async def test_an_impossible_draft_that_is_accepted_ends_its_request(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came before it stays, whether samplers remember it or not."""
    guess = [3, NEVER, 4]
    expected = await together(guess, fields)

    def takes_all(found: Verdict) -> Verdict:
        width = found.path.shape[1]
        return replace(found, path=found.path * 0 + np.arange(width), n_acc=found.n_acc * 0 + width - 1)

    broken(monkeypatch, takes_all)
    found = await together(guess, fields)
    others_are_unhurt(found, expected)
    for one in found["token"]:
        assert one.end.error_code == "internal_error"
        assert one.tokens[-1] == 3 and NEVER not in one.tokens


async def test_residuals_without_mass_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, lambda found: replace(found, repaired=found.repaired + 1))
    for rule, answers in (await together(GUESS)).items():
        known = [one.finish.speculation for one in answers if one.finish is not None]
        counted = [one.repaired for one in known if one is not None]
        assert all(counted) if rule == "token" else not any(counted)
