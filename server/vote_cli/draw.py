"""Draws the samples of every question from a server: in as few requests as it allows, several questions at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from server.together import all_of
from server.vote_cli.answers import Answer, read_answer
from server.vote_cli.dialect import Dialect
from server.vote_cli.questions import Question
from server.vote_cli.remote import QuestionFailed, Refused, Remote
from voting.contract import Sample


@dataclass(frozen=True)
class Taken:
    """A sample, with what its record says about the request."""

    sample: Sample
    seed: int
    counted: bool  # mean_logprob is over all generated tokens


@dataclass(frozen=True)
class Sampler:
    """Draws `samples` samples per question."""

    remote: Remote
    dialect: Dialect
    samples: int
    seed: int
    top_logprobs: int

    async def draw(self, question: Question) -> list[Taken]:
        """In index order. Fewer than asked for, but at least one, where a program has no more of them. Raises
        QuestionFailed or CannotGoOn."""
        taken: dict[int, Taken] = {}
        while missing := [index for index in range(self.samples) if index not in taken]:
            parts = list(_runs(missing, self.dialect.choices))
            complete = False
            for part, answer in zip(parts, await all_of(self._ask(question, *part) for part in parts), strict=True):
                seed = seed_of(self.seed, question.id, part[0])
                taken |= {one.sample.index: Taken(one.sample, seed, one.counted) for one in answer.choices}
                complete |= answer.complete
            if complete:
                break
        return [taken[index] for index in sorted(taken)]

    async def _ask(self, question: Question, first: int, n: int) -> Answer:
        """Choices from index `first` on, at least one and at most n."""
        while True:
            revision = self.dialect.revision
            n = min(n, self.dialect.choices)
            body = self.dialect.body(question.asked, n, seed_of(self.seed, question.id, first))
            try:
                answered = await self.remote.ask("POST", self.dialect.path, body)
            except Refused as refusal:
                # of several requests with the same fault, the first one's refusal has been heard already
                if self.dialect.revision == revision and not self.dialect.concede(refusal, n):
                    raise
                continue
            answer = read_answer(answered, first, self.top_logprobs)
            if not answer.choices:
                raise QuestionFailed("the server's answer has no choices")
            if len(answer.choices) < n and not answer.complete:  # it takes `n`, and gives what it likes
                self.dialect.choices = min(self.dialect.choices, len(answer.choices))
            return replace(answer, choices=answer.choices[:n])


async def draw_all(
    sampler: Sampler, questions: Sequence[Question], at_once: int, done: Callable[[Question, list[Taken]], None]
) -> dict[str, str]:
    """Calls `done` with each question's samples, in the order in which they are complete. Returns what was wrong with
    the others, by id. Raises CannotGoOn, and what `done` raises; what is under way is then lost."""
    failed: dict[str, str] = {}
    waiting = iter(questions)  # all workers take from it

    async def work() -> None:
        for question in waiting:
            try:
                taken = await sampler.draw(question)
            except QuestionFailed as error:
                failed[question.id] = str(error)
            else:
                done(question, taken)

    await all_of(work() for _ in range(min(at_once, len(questions))))
    return failed


def seed_of(seed: int, question: str, first: int) -> int:
    """Of the request for a question's samples from index `first` on: 31 bits, which every server takes."""
    digest = hashlib.blake2b(f"{seed}\n{first}\n{question}".encode(errors="surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest) >> 1


def _runs(indices: Sequence[int], longest: int) -> Iterator[tuple[int, int]]:
    """(first, length) of stretches of consecutive indices."""
    at = 0
    while at < len(indices):
        end = at + 1
        while end < len(indices) and end - at < longest and indices[end] == indices[at] + (end - at):
            end += 1
        yield indices[at], end - at
        at = end
