"""Votes among programs: which tests they pass decides, and a person who knows some of the tests (voting.md section 15).

Runs no program: the matrix comes with the request, or from the sandbox that the operator has configured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from samplers.contract import SamplerError
from server.errors import bad_request, refuse
from server.schema.votes import Code
from server.votes.executor import CodeExecutor, CodeTest
from server.votes.request import VoteRequest
from voting.code_session import MAX_ROUNDS, CodeSession
from voting.contract import Sample
from voting.pass_matrix import PassMatrix
from voting.rule import voters
from voting.verdicts import CORRECT, Verdict

NO_EXECUTOR = "no_code_executor"


def check_code(code: Code, vote: VoteRequest, samples: int | None, executor: CodeExecutor | None) -> None:
    """Refuse what cannot be voted on by tests. samples: how many the request brings along; None: they are drawn."""
    if vote.rule.name != "sc":
        refuse("'code' counts the programs that pass the same tests: 'voting.rule' must be sc", "voting.rule")
    if code.passes is None:
        if executor is None:
            message = "this server has no code executor: 'code.passes' must say which samples pass which tests"
            raise bad_request(message, "code.passes", NO_EXECUTOR)
        return
    if samples is None:
        refuse("'code.passes' is about 'samples_data': nobody knows the programs yet", "code.passes")
    if len(code.passes) != samples:
        refuse(f"'code.passes' has {len(code.passes)} rows for {samples} samples", "code.passes")
    for place, row in enumerate(code.passes):
        if len(row) != len(code.tests):
            path = f"code.passes[{place}]"
            refuse(f"'{path}' has {len(row)} values for {len(code.tests)} tests", path)


def tests_of(code: Code) -> tuple[CodeTest, ...]:
    return tuple(CodeTest(test.input, test.expected) for test in code.tests)


async def code_session(
    code: Code,
    samples: Sequence[Sample],
    passes: Mapping[int, Sequence[bool]] | None,
    executor: CodeExecutor | None,
) -> CodeSession:
    """The session of a checked request. samples: of the vote; passes: by index. Raises a 500 for a broken executor."""
    tests, able = tests_of(code), voters(samples)
    codes = [str(sample.answer) for sample in able]
    if passes is not None:
        rows: Sequence[Sequence[bool]] = [passes[sample.index] for sample in able]
    else:
        assert executor is not None
        rows = await executor.passes(codes, tests)
    return CodeSession(
        tuple(codes),
        tuple(sample.index for sample in able),
        tuple(test.expected for test in tests),
        PassMatrix.of(rows) if rows else PassMatrix((), len(tests)),
        code.max_rounds or MAX_ROUNDS,
    )


async def rerun(
    verdict: Verdict, session: CodeSession, tests: Sequence[CodeTest], executor: CodeExecutor | None
) -> Verdict:
    """The verdict with what a corrected test says about every code now, if it is about one and does not bring that."""
    known = 0 <= verdict.id < len(tests) and session.status == "open"
    if verdict.target != "test" or verdict.verdict != CORRECT or verdict.column is not None or not known:
        return verdict
    if executor is None:
        raise SamplerError(
            f"this server has no code executor: 'passes' must say which of {len(session.codes)} codes pass now",
            "passes",
        )
    test = tests[verdict.id]._replace(expected=str(verdict.value))
    rows = await executor.passes(session.codes, [test])
    return replace(verdict, column=tuple(row[0] for row in rows))
