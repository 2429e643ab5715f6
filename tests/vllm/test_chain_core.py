"""Chains over rows that vLLM hands over: the same tokens as the stack the torch runner uses. Needs no vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.request import DecodeRequest
from engine.runners.vllm.chain_core import ChainCore
from engine.runners.vllm.choice import Choice
from engine.runners.vllm.extras import ProcessorSetup
from engine.runners.vllm.reports import Account, Report
from engine.runners.vllm.row_block import LogitRow, Place
from engine.scores import ScoreQuestion, asked_scores
from samplers.model_facts import NO_FACTS
from samplers.programs.branch import Branch, Limits
from samplers.rng import Stream
from samplers.stack import SamplerStack
from tests.vllm.requests import decode_request

VOCAB = 60
CPU = torch.device("cpu")


class Sent(list[Report | Account]):
    """Takes reports."""

    def send(self, said: Sequence[Report | Account]) -> None:
        self += said


class Written(dict[Place, LogitRow]):
    """Takes rows."""

    def write(self, place: Place, raw: Tensor, shaped: Tensor, drawn: int) -> None:
        self[place] = LogitRow(raw.clone(), shaped.clone(), drawn)


def core(slots: int = 8, block: Any = None) -> tuple[ChainCore, Sent]:
    sent: Any = Sent()
    return ChainCore(ProcessorSetup(NO_FACTS, VOCAB, slots, "unused"), CPU, sent, block), sent


def rows(count: int, seed: int = 0, width: int = VOCAB) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 3


def request_of(fields: dict[str, Any] | None = None, **options: Any) -> DecodeRequest:
    return decode_request(fields, VOCAB, **options)


def token_of(row: Tensor) -> int:
    """The only token a row leaves."""
    finite = torch.nonzero(row > -torch.inf).flatten().tolist()
    assert len(finite) == 1 and row[finite[0]] == 0
    return int(finite[0])


def expected(request: DecodeRequest, choice: int, steps: int) -> list[int]:
    """What the torch runner's stack draws from the same rows."""
    stack = SamplerStack(1, VOCAB, CPU)
    stack.admit(
        0, request.chain, seed=request.seed, choice=request.first_choice + choice, prompt_ids=request.prompt_ids,
        output_ids=request.begun, ending_ids=request.eos_token_ids, min_tokens=request.min_tokens, n=request.n,
    )  # fmt: skip
    tokens = []
    for step in range(steps):
        position = np.array([len(request.begun) + step])
        drawn = stack.sample(rows(4, step)[choice : choice + 1], np.array([0]), position).tokens
        stack.accept(np.array([0]), drawn)
        tokens.append(int(drawn[0]))
    return tokens


FIELDS: list[dict[str, Any]] = [
    {"temperature": 0.8, "min_p": 0.05},
    {"sampler": ["arithmetic"]},
    {"sampler": ["mirostat"], "presence_penalty": 1.5},
    {"temperature": 0, "repetition_penalty": 1.3},
]


def run(own: ChainCore, requests: list[DecodeRequest], steps: int, wider: int = 0) -> list[list[int]]:
    outputs: list[list[int]] = [[] for _ in requests]
    for step in range(steps):
        logits = torch.nn.functional.pad(rows(4, step)[: len(requests)], (0, wider), value=50.0)
        seated = {
            row: (own.seat(Choice.of(one, row), [*one.prompt_ids, *one.begun], outputs[row]), outputs[row])
            for row, one in enumerate(requests)
        }
        own.draw(logits, seated)
        for row, output in enumerate(outputs):
            output.append(token_of(logits[row]))
    return outputs


@pytest.mark.parametrize("wider", [0, 4], ids=["whole", "padded"])
def test_tokens_are_those_of_the_torch_runner(wider: int) -> None:
    """Heads may have rows that are no tokens."""
    requests = [request_of(fields, n=4, begun=(5, 6) if at == 1 else ()) for at, fields in enumerate(FIELDS)]
    assert run(core()[0], requests, 6, wider) == [expected(one, at, 6) for at, one in enumerate(requests)]


def test_rows_of_others_are_left_alone() -> None:
    own, _ = core()
    one = request_of()
    logits = rows(3)
    before = logits.clone()
    own.draw(logits, {1: (own.seat(Choice.of(one, 0), one.prompt_ids, []), [])})
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    assert token_of(logits[1]) < VOCAB


def test_drawing_again_gives_the_same() -> None:
    """vLLM computes rows of unfinished prompts too, and throws their tokens away."""
    for fields in FIELDS:
        own, _ = core()
        one = request_of(fields, n=4)
        slot = own.seat(Choice.of(one, 0), one.prompt_ids, [])
        own.draw(rows(1, 99), {0: (slot, [])})
        found = []
        for _ in range(2):
            logits = rows(4, 0)[:1]
            own.draw(logits, {0: (slot, [])})
            found.append(token_of(logits[0]))
        assert found == expected(one, 0, 1) * 2


QUESTIONS: list[dict[str, Any]] = [
    {"logprobs": 2, "processed_logprobs": True, "trace": 3},
    {"logprobs": 0, "logprob_token_ids": (7, 3)},
    {"trace": 1},
    {"logprobs": 4},  # vLLM says that itself
]


def test_what_is_asked_is_said_of_every_token() -> None:
    requests = [request_of({"min_p": 0.05, "temperature": 0.8}, n=4, **asked) for asked in QUESTIONS]
    own, sent = core()
    outputs = run(own, requests, 3)
    said = {(one.key, one.position): one for one in sent if isinstance(one, Account)}
    assert len(said) == len(sent) == 9 and all(not key.startswith(requests[3].id) for key, _ in said)
    for at, one in enumerate(requests[:3]):
        stack = SamplerStack(1, VOCAB, CPU)
        stack.admit(0, one.chain, seed=one.seed, choice=at, prompt_ids=one.prompt_ids, n=one.n)
        for step in range(3):
            raw, token = rows(4, step)[at : at + 1], torch.tensor([outputs[at][step]])
            account = said[f"{one.id}/{at}", step]
            shaped = stack.sample(raw, np.array([0]), np.array([step])).processed
            assert [account.score] == asked_scores([ScoreQuestion.of(one)], raw, shaped, token)
            assert (account.trace is None) == (one.trace is None)
            if account.trace is not None:
                assert account.trace.token == token[0] and "min_p" in [stage.name for stage in account.trace.stages]


def test_of_a_row_without_a_token_nothing_else_is_said() -> None:
    own, sent = core()
    one = request_of({}, logprobs=0, logprob_token_ids=(3,))
    logits = torch.full((1, VOCAB), -torch.inf)
    own.draw(logits, {0: (own.seat(Choice.of(one, 0), one.prompt_ids, []), [])})
    assert [type(said) for said in sent] == [Report]


def test_slots_in_the_batch_are_not_given_away() -> None:
    """Neither that of a choice that waits, nor that of one that comes back in the same step."""
    own, _ = core(slots=3)
    requests = [request_of({"sampler": ["arithmetic"]}, n=4) for _ in range(5)]

    def seat(at: int, held: Sequence[int] = ()) -> int:
        return own.seat(Choice.of(requests[at], at), requests[at].prompt_ids, [], held)

    waiting, back, other = seat(0), seat(1), seat(2)
    assert seat(3, held=[waiting]) == back  # the one used longest ago is in the batch
    assert seat(2) == other
    assert seat(4, held=[waiting]) == back  # 2 has just come back


def test_state_survives_an_absence() -> None:
    """The codes of arithmetic sampling do not follow from the tokens."""
    one = request_of({"sampler": ["arithmetic"]}, n=4)
    own, _ = core()
    output: list[int] = []
    for step in range(5):
        slot = own.seat(Choice.of(one, 2), one.prompt_ids, list(output))  # preempted and back before every step
        logits = rows(4, step)[2:3]
        own.draw(logits, {0: (slot, output)})
        output.append(token_of(logits[0]))
    assert output == expected(one, 2, 5)


def test_slots_are_given_to_newcomers() -> None:
    own, _ = core(slots=2)
    for _ in range(5):
        one = request_of({"temperature": 0, "repetition_penalty": 1.3})
        assert run(own, [one], 3) == [expected(one, 0, 3)]


def test_an_empty_row_stays_as_it_is_and_is_reported() -> None:
    own, sent = core()
    good, bad = request_of(), request_of({"allowed_token_ids": [3]})
    logits = rows(2)
    logits[1, 3] = -torch.inf  # as a grammar would
    before = logits[1].clone()
    seated = {row: (own.seat(Choice.of(one, 0), one.prompt_ids, []), []) for row, one in enumerate([good, bad])}
    own.draw(logits, seated)
    assert torch.equal(logits[1], before)
    assert token_of(logits[0]) < VOCAB
    assert [(one.key, one.position, one.code) for one in sent] == [(f"{bad.id}/0", 0, "constraint_unsatisfiable")]


def test_a_masked_id_is_never_chosen() -> None:
    own, _ = core()
    one = request_of({"temperature": 2.0})
    output: list[int] = []
    for step in range(20):
        logits = rows(1, step)
        logits[0, ::2] = -torch.inf
        own.draw(logits, {0: (own.seat(Choice.of(one, 0), one.prompt_ids, output), output)})
        output.append(token_of(logits[0]))
    assert all(token % 2 for token in output)


def test_parameters_that_a_sampler_cannot_take_fail_their_choice() -> None:
    own, sent = core()
    one = request_of({"logit_bias": {"5": 1.0}})
    bad = Choice.of(one, 0)
    bad.chain.stages[0].values["logit_bias"]["900"] = 1.0
    logits = rows(1)
    before = logits.clone()
    own.draw(logits, {0: (own.seat(bad, one.prompt_ids, []), [])})
    assert torch.equal(logits, before)
    assert [one.code for one in sent] == ["internal_error"]


def behind(request: DecodeRequest, ids: list[int], place: Place) -> Choice:
    """The row behind a branch of these tokens."""
    branch = Branch(Limits(20), Stream(request.seed, request.first_choice), [])
    branch.ids.extend(ids)
    return Choice.behind(request, branch, request.chain, f"{request.id}/0.0", place)


def test_rows_behind_branches_are_written_whole() -> None:
    written = Written()
    own, _ = core(block=written)
    one, other = request_of({"temperature": 0.5, "min_p": 0.1}), request_of()
    logits = rows(2, width=VOCAB + 3)
    before = logits.clone()
    choice = behind(one, [4, 5], Place(6, 7))
    seated = {
        0: (own.seat(Choice.of(other, 0), other.prompt_ids, []), []),
        1: (own.seat(choice, [*one.prompt_ids, 4, 5], []), []),
    }
    own.draw(logits, seated)
    assert list(written) == [(6, 7)]
    row = written[Place(6, 7)]
    assert torch.equal(row.raw, before[1, :VOCAB]) and row.drawn == token_of(logits[1])
    kept = row.shaped > -torch.inf
    assert 1 <= kept.sum() < VOCAB
    assert torch.allclose(row.shaped[kept].softmax(0), (row.raw[kept] / 0.5).softmax(0), atol=1e-6)


def test_an_empty_row_is_written_without_a_token() -> None:
    written = Written()
    own, sent = core(block=written)
    one = request_of({"allowed_token_ids": [3]})
    logits = rows(1)
    logits[0, 3] = -torch.inf
    own.draw(logits, {0: (own.seat(behind(one, [], Place(0, 1)), one.prompt_ids, []), [])})
    assert written[Place(0, 1)].drawn == -1
    assert [report.code for report in sent] == ["constraint_unsatisfiable"]


def test_states_follow_a_branch_that_grows() -> None:
    """Also those that do not follow from its tokens."""
    one = request_of({"sampler": ["mirostat"], "presence_penalty": 1.5})
    written = Written()
    own, _ = core(block=written)
    ids: list[int] = []
    for step in range(5):
        logits = rows(4, step)[:1]
        place = Place(0, step + 1)
        own.draw(logits, {0: (own.seat(behind(one, ids, place), [*one.prompt_ids, *ids], []), [])})
        ids.append(written[place].drawn)
    assert ids == expected(one, 0, 5)
