"""A vote over samples that a request brings along: nothing is drawn.

What `voting.poll.Poll` does offline, with scorers and judges, and with stopping rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from samplers.contract import SamplerError
from server.errors import refuse
from server.schema.votes import SamplesVoteBody
from server.state import ServedModel, ServerState
from server.votes.ballot_box import BallotBox
from server.votes.election import reading_of
from server.votes.endings import Stopping
from server.votes.judge import Origin
from server.votes.judging import Judged, judged
from server.votes.problem import Problem
from server.votes.request import VoteRequest, read_vote
from server.votes.result import NOT_IID, Held, basis_of, decide
from server.votes.scoring import check_scorer
from voting.answers.finders import lists_options
from voting.contract import Drawing, Sample
from voting.records import read_sample
from voting.rule import unrecorded, voters
from voting.scorers import name_of

FIELD = "samples_data"
_OF_DRAWING = ("at_once", "reallocate")


@dataclass(frozen=True)
class Given:
    """A checked request."""

    vote: VoteRequest
    recorded: bool  # answers are as the records say
    samples: tuple[Sample, ...]  # in index order
    paths: Mapping[int, str]  # index -> where the request has the sample, in the request's order


def read_given(body: SamplesVoteBody, state: ServerState) -> Given:
    """Answers are as recorded if any are and `voting.extract` does not ask for others. Raises SamplerError or a 400
    that names the field."""
    records = body.samples_data
    if len(records) > state.limits.max_k:
        refuse(f"'{FIELD}' may have at most {state.limits.max_k} samples", FIELD)
    paths: dict[int, str] = {}
    samples = []
    for place, record in enumerate(records):
        path = f"{FIELD}[{place}]"
        sample = read_sample(record, place, path)
        if sample.index in paths:
            refuse(f"'{path}.index' is that of '{paths[sample.index]}'", f"{path}.index")
        paths[sample.index] = path
        samples.append(sample)
    samples.sort(key=lambda sample: sample.index)
    asked = dict(body.voting)
    recorded = asked.get("extract") is None and any(sample.answer is not None for sample in samples)
    if asked.get("extract") is None and body.code is not None:
        asked["extract"] = "code"
    if asked.get("samples") is None:
        asked["samples"] = len(samples)
    vote = read_vote(asked, state.limits.max_k)
    if recorded:
        vote = replace(vote, given={**vote.given, "extract": None})
    _check(vote, len(samples))
    return Given(vote, recorded, tuple(samples), paths)


def _check(vote: VoteRequest, samples: int) -> None:
    if vote.samples != samples:
        refuse(f"'voting.samples' is not the number of samples in '{FIELD}', {samples}", "voting.samples")
    for name in _OF_DRAWING:
        if getattr(vote, name):
            refuse(f"'voting.{name}' has no effect on samples that have been drawn", f"voting.{name}")
    if vote.stop.rule.needs_iid and _depends(vote):
        refuse(f"'{vote.stop.rule.name}' needs samples that do not depend on each other", "voting.stop", NOT_IID)


def _depends(vote: VoteRequest) -> bool:
    """As far as the rule tells: how the samples were really drawn is not known."""
    return vote.rule.drawing(vote.values) is not Drawing.INDEPENDENT


def _has_been_judged(vote: VoteRequest, samples: Sequence[Sample]) -> bool:
    """Whether scores are recorded that the rule reads, so that nobody has to be asked again."""
    name = name_of(vote.values["scorer"]) if "scores" in vote.rule.needs(vote.values) else vote.rule.name
    return any(name in sample.scores for sample in voters(samples))


async def hold_given(
    given: Given, problem: Problem, state: ServerState, model: ServedModel | None, origin: Origin
) -> Held:
    """model: judges for the rules that ask one, and says what closes the reasoning in the samples' texts."""
    vote = given.vote
    reading = reading_of(vote, state, model)
    if given.recorded:
        reading = replace(reading, extraction=None)
    watch = vote.stop.watch()
    endings = [] if vote.stop.never_fires else [Stopping(watch)]
    box = BallotBox(vote.rule, reading, lists_options(problem.text), endings)
    await state.in_vote_thread(box.take, given.samples)
    _check_recorded(given, box.samples)
    flags = (NOT_IID,) if _depends(vote) else ()
    if _has_been_judged(vote, box.samples):
        found = Judged(box.samples)
    else:
        if "scores" in vote.rule.needs(vote.values):
            check_scorer(vote.values["scorer"], state, "voting.params.scorer")
        found = await judged(vote, problem, box.samples, basis_of(watch, box.samples), state, model, origin)
    try:
        result = await state.in_vote_thread(decide, vote, found.samples, reading, watch, (*flags, *found.flags))
    except SamplerError as error:  # about what scorers have said
        raise SamplerError(str(error), f"voting.params.{error.param}") from None
    discarded = given.samples[len(box.samples) :]
    state.metrics.vote(vote.rule.name, len(box.samples), len(discarded))
    tokens = {**found.tokens._asdict(), "discarded": 0}
    return Held(vote, result, reading, tokens)


def _check_recorded(given: Given, samples: Sequence[Sample]) -> None:
    """Refuse a vote that reads what nobody has recorded of a sample that takes part in it."""
    for sample in voters(samples):
        field = unrecorded(sample, given.vote.needs)
        if field is not None:
            path = f"{given.paths[sample.index]}.{field}"
            refuse(f"'{path}' is missing, and the vote reads it", path)
