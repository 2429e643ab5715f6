"""What people say about stored votes: a session for every vote, and verdicts one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.errors import bad_request
from server.schema.votes import Code
from server.state import ServerState
from server.votes.code import code_session, rerun
from server.votes.result import Held
from server.votes.store import MOST_VERDICTS, StoredVote
from voting.code_session import CodeSession
from voting.sessions import VoteSession, finder
from voting.verdicts import Verdict, VoteClosed


async def session_of(
    held: Held, code: Code | None, passes: Mapping[int, Sequence[bool]] | None, state: ServerState
) -> VoteSession | CodeSession:
    """What verdicts begin with. passes: as `code_session`."""
    outcome, reading = held.result.outcome, held.reading
    if code is None:
        return VoteSession(outcome, finder(outcome, reading.equivalence, reading.compare))
    return await code_session(code, outcome.samples, passes, state.code_executor)


async def say(verdict: Verdict, vote: StoredVote, state: ServerState) -> None:
    """Change a vote. Raises a 400 for a verdict that it does not take, a 500 if the code executor fails, and a 404 if
    the vote has gone meanwhile; the vote is then as it was."""
    async with vote.lock:
        session = vote.session
        if len(session.log) >= MOST_VERDICTS:
            raise bad_request(f"the vote has had {MOST_VERDICTS} verdicts", None, "vote_log_full")
        try:
            if isinstance(session, CodeSession):
                verdict = await rerun(verdict, session, vote.tests, state.code_executor)
            session = await state.in_vote_thread(session.after, verdict)  # answers are compared
        except VoteClosed as error:
            raise bad_request(str(error), error.param, "vote_closed") from None
        state.votes.change(vote, session)
    state.metrics.verdicts.labels(verdict.verdict, verdict.target).inc()
