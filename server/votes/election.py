"""Draws the samples of a prompt, lets them vote, and shows the winner: what `voting` makes of a generation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cached_property

from engine.request import DecodeRequest
from samplers.contract import SamplerError
from server.choice import ChoiceEvent
from server.errors import bad_request
from server.generate import Draw, Progress, Step, Tokens
from server.offload import offload
from server.state import ServedModel, ServerState
from server.votes.ballot_box import BallotBox
from server.votes.drawing import Source
from server.votes.endings import Consensus, Ending, Stopping
from server.votes.growing import Growing
from server.votes.judging import judged
from server.votes.pot import Pot, Share
from server.votes.problem import Problem
from server.votes.request import VoteRequest
from server.votes.result import Held, basis_of, decide
from voting.answers.finders import lists_options
from voting.answers.math_pool import SharedBudget
from voting.contract import Drawing, Sample
from voting.poll import Reading


@dataclass(frozen=True)
class Election:
    """One request's vote; its prompts vote each for itself."""

    vote: VoteRequest
    problems: Sequence[Problem]  # one per prompt
    state: ServerState
    model: ServedModel
    flags: tuple[str, ...]  # what is known about the samples before they are drawn
    whole: bool  # the winner's text may come at once

    @cached_property
    def pot(self) -> Pot | None:
        """What its prompts have in common. None: each keeps to its own samples."""
        return Pot(len(self.problems), self.vote.samples) if self.vote.reallocate else None

    async def steps(self, prompt: int, request: DecodeRequest, draw: Draw) -> AsyncGenerator[Step]:
        """First a step with an empty event, so that a stream can begin; the winner's events in the last one."""
        ballot = Ballot(self, prompt, request)
        async with aclosing(ballot.draw(draw)) as steps:
            async for step in steps:
                yield step
        if not ballot.box.samples:
            raise bad_request("there is no sample to vote on", "voting")
        share: Share | None = None
        if self.pot is not None:
            share = await self.pot.settle(prompt, len(ballot.box.samples), ballot.decided)
        if share is not None and share.granted:
            ballot = ballot.extended(share.granted)
            async with aclosing(ballot.draw(draw)) as steps:
                async for step in steps:
                    yield step
        yield await ballot.counted(share)


class Ballot:
    """The vote of one prompt."""

    def __init__(self, election: Election, prompt: int, request: DecodeRequest) -> None:
        self._election = election
        self._prompt = prompt
        self._request = request
        self._problem = election.problems[prompt]
        self._watch = election.vote.stop.watch()
        self._reading = reading_of(election.vote, election.state, election.model)
        self._first = prompt * request.n  # number of its first choice in the job
        self._voices: dict[int, Growing] = {}
        self._finished = 0
        self._begun = False
        self._repeated = 0  # tokens that a program has drawn once more
        self._open()

    def _open(self) -> None:
        """A box and where its samples come from."""
        vote = self._election.vote
        self.box = BallotBox(vote.rule, self._reading, lists_options(self._problem.text), self._endings())
        self._expected = self._request.n
        longest = self._election.model.runner.max_model_len
        self._source = Source(vote, self._problem, self._request, self.box, longest)

    @property
    def decided(self) -> bool:
        """It has no use for further samples: a stopping rule says so, or there are none."""
        return self.box.closed or len(self.box.samples) < self._request.n

    def extended(self, further: int) -> Ballot:
        """Goes on with further samples. A program has to begin again, with more of them."""
        request, n = self._request, self._request.n
        if request.chain.program is not None:
            self._repeated = sum(voice.tokens for voice in self._voices.values())
            self._request = replace(request, id=f"{request.id}-again", n=n + further)
            self._voices, self._finished = {}, 0
            self._open()
        else:
            self._expected = n + further
            more = replace(request, id=f"{request.id}-more", n=further, first_choice=request.first_choice + n)
            self._source = replace(self._source, request=more, first=n)
        return self

    async def draw(self, draw: Draw) -> AsyncGenerator[Step]:
        """Steps without a winner, until there are samples enough and all others have ended."""
        async with aclosing(self._source.steps(draw)) as steps:
            async for step in steps:
                spent = Tokens(0, sum(len(event.token_ids) for event in step.events))
                done = self._take(step.events)
                if self.box.closed:
                    yield Step(self._prompt, spent=spent, speculation=step.speculation)
                    continue
                self._expected -= step.absent
                opening = [] if self._begun or not step.events else [ChoiceEvent(self._prompt)]
                self._begun = self._begun or bool(opening)
                progress = [Progress(self._finished + 1 + i, self._expected) for i in range(len(done))]
                self._finished += len(done)
                yield replace(step, events=opening, absent=0, progress=progress, spent=spent)
                if done and self.box.watched:  # then answers are compared
                    await self._election.state.in_vote_thread(self.box.put, done)
                elif done:
                    await offload(sum(len(sample.text) for sample in done), self.box.put, done)

    async def counted(self, share: Share | None) -> Step:
        """The winner, and what the vote says about it."""
        samples: Sequence[Sample] = self.box.samples
        flags = (*self._election.flags, *self._source.flags, *self.box.flags)
        found = await judged(
            self._election.vote,
            self._problem,
            samples,
            basis_of(self._watch, samples),
            self._election.state,
            self._election.model,
            self._request,
        )
        samples = found.samples
        try:
            result = await self._election.state.in_vote_thread(
                decide, self._election.vote, samples, self._reading, self._watch, (*flags, *found.flags)
            )
        except SamplerError as error:  # about what scorers have said
            raise SamplerError(str(error), f"voting.params.{error.param}") from None
        winner = self._voices[result.outcome.representative]
        drawn = sum(voice.tokens for voice in self._voices.values())
        used = {sample.index for sample in samples}
        discarded = [voice for index, voice in self._voices.items() if index not in used]
        beside = found.tokens
        extra = Tokens(beside.prompt + self._source.extra_prompts, beside.completion + self._repeated)
        tokens = {
            "prompt": len(self._request.prompt_ids) + extra.prompt,
            "completion": drawn + extra.completion,
            "discarded": sum(voice.tokens for voice in discarded) + self._repeated,
        }
        self._election.state.metrics.vote(self._election.vote.rule.name, len(samples), len(discarded))
        return Step(
            self._prompt,
            winner.shown(self._prompt),
            spent=Tokens(extra.prompt, beside.completion),
            vote=Held(self._election.vote, result, self._reading, tokens, None if share is None else share._asdict()),
        )

    def _take(self, events: Sequence[ChoiceEvent]) -> list[Sample]:
        """The samples that end with these events."""
        vote, done = self._election.vote, []
        for event in events:
            index = event.choice - self._first
            if index not in self._voices:
                self._voices[index] = Growing(index, vote.needs, vote.top, whole=self._election.whole)
            self._voices[index].add(event)
            if event.end is not None:
                done.append(self._voices[index].sample())
        return done

    def _endings(self) -> list[Ending]:
        vote = self._election.vote
        endings: list[Ending] = [] if vote.stop.never_fires else [Stopping(self._watch)]
        if vote.rule.drawing(vote.values) is Drawing.SCREENED:
            endings.append(Consensus(vote.rule, vote.values))
        return endings


def reading_of(vote: VoteRequest, state: ServerState, model: ServedModel | None) -> Reading:
    """How this vote reads and compares answers. model: whose texts the samples are, where that is known."""
    return Reading(
        vote.equivalence,
        SharedBudget(state.math_pool).compare if vote.equivalence.math_verify else None,
        vote.extraction,
        None if model is None else model.end_of_reasoning,
        vote.keep_truncated,
        vote.guard_repetition,
    )
