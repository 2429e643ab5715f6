"""A stored vote on the wire, as it stands."""

from __future__ import annotations

from typing import Any

from server.jsontext import dumps_in_parts
from server.votes.store import StoredVote
from voting.code_session import CodeSession

# what follows from the clusters of the rule, where tests have made others
_OF_THE_RULE = ("pruning", "details", "cert")


def vote_body(vote: StoredVote) -> bytes:
    """JSON. `response` is as it was generated; everything else is as the verdicts have left it."""
    session = vote.session  # this may run in a thread, beside which a verdict makes another one
    said = session.report()
    head = {
        "id": vote.id,
        "object": "vote",
        "created": int(vote.created),
        "expires_at": int(vote.expires_at),
        "model": vote.model,
        "status": said["status"],
        "answer": said["answer"],
        "confidence": said["confidence"],
        "representative": _representative(vote, session.representative),
        "voting": _voting(vote, said, programs=isinstance(session, CodeSession)),
        "log": said["log"],
        "usage": vote.usage,
    }
    return dumps_in_parts(head)[:-1] + b',"response":' + (vote.response or b"null") + b"}"


def _representative(vote: StoredVote, index: int | None) -> dict[str, Any] | None:
    if index is None:
        return None
    sample = next(one for one in vote.held.result.outcome.samples if one.index == index)
    return {"index": index, "text": sample.text}


def _voting(vote: StoredVote, said: dict[str, Any], *, programs: bool) -> dict[str, Any]:
    report = {"id": vote.id, **vote.held.report()}
    names = ["answer", "confidence", "tie", "clusters"]
    if programs:
        names += ["codes", "tests", "next_test"]
        report |= dict.fromkeys(_OF_THE_RULE)
        for place, row in enumerate(said["tests"]):
            row["input"] = vote.tests[place].input
    return report | {name: said[name] for name in names}
