"""What `drafthouse vote run` does: reads problems, draws samples of each from a server, and replays votes over them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from bench.progress import progress
from samplers.contract import SamplerError
from samplers.temperature import GREEDY_BELOW
from server.failure import fail
from server.vote_cli import offline
from server.vote_cli.dialect import Dialect
from server.vote_cli.draw import Sampler, Taken, draw_all
from server.vote_cli.inputs import name_or_json, polls, reading, sizes
from server.vote_cli.journal import Journal
from server.vote_cli.questions import Question, read_questions
from server.vote_cli.remote import CannotGoOn, Remote
from server.vote_cli.settings import Settings
from voting.contract import Drawing, Judging, Sample
from voting.poll import Poll
from voting.records import write_sample
from voting.rule import read_values
from voting.samples_file import Problem

FAILED = 1  # exit status: some problems could not be drawn
INTERRUPTED = 130  # as of what SIGINT has ended


def run(
    problems: Path,
    out: Path | None,
    url: str,
    api_key: str | None,
    concurrency: int,
    timeout: float,
    retries: int,
    methods: str,
    params: str | None,
    k: str | None,
    repeats: int,
    equiv: str,
    extract: str,
    end_of_reasoning: str | None,
    keep_truncated: bool,
    json: Path | None,
    plot: Path | None,
    transport: httpx.AsyncBaseTransport | None = None,
    **drawing: Any,
) -> None:
    """drawing: the other fields of `Settings`. Raises SamplerError, SamplesFileError, OSError, NoFigures or
    CannotGoOn; leaves with status 1 if some problems could not be drawn."""
    offline.check_plot(plot)
    samples, temperature, sampler = drawing["samples"], drawing["temperature"], drawing["sampler"]
    drawing["sampler"] = None if sampler is None else name_or_json(sampler, "sampler")
    if samples > 1 and temperature is not None and temperature < GREEDY_BELOW and sampler is None:
        raise SamplerError("with --temperature 0 all samples of a problem are the same", "temperature")
    voting = {
        "re_extract": True,
        "extract": extract,
        "end_of_reasoning": end_of_reasoning,
        "keep_truncated": keep_truncated,
    }
    with reading(equiv, False, voting) as how:
        asked = polls(methods.split(","), params, how, sizes(k, samples))
    for poll in asked:
        _check_method(poll, samples, drawing["top_logprobs"])
    instruction = "\n\n".join(dict.fromkeys(poll.rule.instruction for poll in asked if poll.rule.instruction))
    questions = read_questions(problems, drawing["endpoint"], instruction)
    path = out or problems.with_suffix(".samples.jsonl")
    if path.exists() and path.samefile(problems):
        raise SamplerError(f"--out {path} is the file of the problems", "out")

    async def draw() -> Run:
        connection = Remote(
            url, api_key, concurrency=concurrency, timeout_s=timeout, retries=retries, transport=transport
        )
        async with connection as remote:
            drawing["model"] = drawing["model"] or await remote.model()
            settings = Settings(
                **drawing,
                extract=name_or_json(extract, "extract"),
                end_of_reasoning=end_of_reasoning,
                instruction=instruction,
            )
            work = Run(settings, asked, Journal(path, settings.json(), questions))
            await work.draw(remote, questions, concurrency)
            return work

    try:
        done = asyncio.run(draw())
    except KeyboardInterrupt:
        fail(f"interrupted{_going_on(path)}", INTERRUPTED)
    except CannotGoOn as error:
        raise CannotGoOn(f"{error}{_going_on(path)}") from None
    done.journal.arrange()
    _report(done, questions)
    if done.journal.done and not _unanswered(questions):
        offline.replay(path, methods, k, repeats, drawing["seed"], params, equiv, "ours", json, plot, **voting)
    if done.failed:
        fail(f"{len(done.failed)} of {len(questions)} problems failed; the same command tries them again", FAILED)


@dataclass
class Run:
    """Samples on their way from a server to a file."""

    settings: Settings
    polls: Sequence[Poll]  # the votes that are to be held, and how answers are found
    journal: Journal
    failed: Mapping[str, str] = field(default_factory=dict)  # id -> why
    notes: dict[str, None] = field(default_factory=dict)  # what the server does not give, in order

    async def draw(self, remote: Remote, questions: Sequence[Question], at_once: int) -> None:
        """Those that are not drawn yet. Raises CannotGoOn and OSError."""
        settings = self.settings
        dialect = Dialect(settings.endpoint, settings.fixed, settings.max_tokens, settings.top_logprobs)
        self.notes = dialect.notes
        sampler = Sampler(remote, dialect, settings.samples, settings.seed, settings.top_logprobs)
        known = set(self.journal.done)
        left = [question for question in questions if question.id not in known]
        with self.journal, progress(f"{settings.samples} samples each") as (begin, done):
            begin(len(left))

            def take(question: Question, taken: Sequence[Taken]) -> None:
                self._check([one.sample for one in taken])
                self._note(taken)
                self.journal.add(question, self._records(question, taken))
                done()

            self.failed = await draw_all(sampler, left, at_once, take)

    def _check(self, samples: Sequence[Sample]) -> None:
        """Raises CannotGoOn for samples that lack what a vote needs, whether or not they have an answer."""
        most, voters = self.settings.samples, [replace(sample, answer="") for sample in samples]
        try:
            for poll in self.polls:
                poll.rule.abstentions(voters, read_values(poll.rule, poll.params, most))
        except SamplerError as error:
            why = "".join(f"; {note}" for note in self.notes)
            raise CannotGoOn(f"{error}, and the server does not give it{why}. Other --methods need less") from None

    def _note(self, taken: Sequence[Taken]) -> None:
        known = [one for one in taken if one.sample.mean_logprob is not None]
        top = self.settings.top_logprobs
        if not known:
            self.notes["no log-probabilities: only rules that count can be replayed"] = None
        elif top and all(one.sample.entropies is None for one in known):
            self.notes[f"fewer than {top} alternatives per token: no topk_entropy, no confs"] = None
        if not all(one.counted for one in known):
            self.notes["mean_logprob is over the tokens that are listed: perhaps without the one that ends a text"] = (
                None
            )

    def _records(self, question: Question, taken: Sequence[Taken]) -> list[dict[str, Any]]:
        """With the answers that a vote finds: one that asks for more than the answer, if there is any, leaves that
        out."""
        poll = max(self.polls, key=lambda poll: bool(poll.rule.instruction))
        read = poll.read(Problem(question.id, tuple(one.sample for one in taken), question.gold, question.prompt))
        return [
            write_sample(replace(one.sample, answer=found.answer))
            | {"seed": one.seed}
            | ({} if one.counted else {"counted": "listed"})
            for one, found in zip(taken, read, strict=True)
        ]


def _check_method(poll: Poll, samples: int, top_logprobs: int) -> None:
    """Raises SamplerError for a rule that wants more than samples that are drawn independently, or statistics of
    another number of alternatives than it says."""
    rule, values = poll.rule, read_values(poll.rule, poll.params, samples)
    if isinstance(rule, Judging) or "scores" in rule.needs(values):
        raise SamplerError(f"'{rule.name}' needs a judge or scores; a request with `voting` has them", "methods")
    if (drawing := rule.drawing(values)) is not Drawing.INDEPENDENT:
        raise SamplerError(f"'{rule.name}' wants {drawing.value} samples; a request with `voting` draws them", "params")
    if rule.needs(values) & {"entropies", "confidences"} and values["topk"] != top_logprobs:
        raise SamplerError(
            f"'{rule.name}' has topk {values['topk']} and --top-logprobs is {top_logprobs}; make them equal, "
            f'with --params \'{{"{rule.name}": {{"topk": ...}}}}\' or the latter',
            "top_logprobs",
        )


def _unanswered(questions: Sequence[Question]) -> int:
    """Problems of which nobody has said what is right: votes over them cannot be graded."""
    return sum(question.gold is None for question in questions)


def _report(done: Run, questions: Sequence[Question]) -> None:
    """On stderr, so that the table can be piped."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(done.journal.done)} of {len(questions)} problems are in {done.journal.path}")
    if missing := _unanswered(questions):
        console.print(f"no table: {missing} problems are without 'gold'")
    for note in done.notes:
        console.print(f"this server: {note}")
    for why in dict.fromkeys(done.failed.values()):
        names = ", ".join(name for name, reason in done.failed.items() if reason == why)
        console.print(f"failed: {names}: {why}", style="red")


def _going_on(path: Path) -> str:
    return f"\n{path} has what was drawn; the same command goes on from there" if path.exists() else ""
