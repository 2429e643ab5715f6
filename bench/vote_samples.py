"""The samples that `bench voting` votes over: drawn once, and kept in files that `drafthouse vote replay` reads too.

All of one temperature, at which the model is uncertain. Groups of 64 samples of a problem are drawn independently, and
by arithmetic sampling: a file holds such a group in the order of its codes, so that every (64/K)-th of them, from
anywhere, is an arithmetic group of K (`sub_group`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.held_out import EVALUATION_SEED, dialogue, word_problems
from bench.progress import Done
from bench.sampler_runs import Answer, Job, Sampling
from bench.sampler_runs import Sample as Sampled
from models.embedded import TARGET
from samplers.chain import Chain, resolve
from samplers.code import fresh
from samplers.rng import Stream
from server.vote_cli.journal import Journal
from server.vote_cli.questions import Question
from voting.answers.equivalence import Equivalence
from voting.answers.extraction import Extraction, read_extraction
from voting.chain import Chain as Attempts
from voting.contract import VOTING_RULES, Judging, Sample
from voting.contract import Question as Asked
from voting.judge import MAX_TOKENS
from voting.outcome import hold as hold  # which registers the rules
from voting.poll import Poll, Reading, drawn
from voting.records import write_sample
from voting.rules.verbalised import INSTRUCTION
from voting.samples_file import Problem, read_problems
from voting.token_statistics import confidences, entropies

GROUP = 64  # samples that are drawn together
TEMPERATURE = 1.0  # the law is the model's own, as PC's estimates assume; about two samples in three are right
INDEPENDENT, ARITHMETIC, VERBALISED, CHAINS, JUDGED = "independent", "arithmetic", "verbalised", "chains", "judged"
ATTEMPTS = 9  # of a chain; the paper has 3, 6 and 9
TOP = 20  # most probable tokens, of which entropies and confidences are taken
JUDGED_KS = (2, 4, 8)  # responses that a judge is shown
READING = Reading(Equivalence())
_DIGITS = 5  # of entropies and confidences
_BATCH = 10  # problems that are written at once
_SEEDS = 1_000_000  # of one group, for all problems


@dataclass(frozen=True)
class Size:
    """How much is drawn, and voted on."""

    problems: int = 500
    groups: int = 2  # of each problem, drawn independently, and as many by arithmetic sampling
    repeats: int = 10  # orders of the independent samples
    special_problems: int = 100  # of rules that need prompts of their own
    special_repeats: int = 2
    verbalised: int = 16  # samples
    chains: int = 4
    solution_tokens: int = 96

    @property
    def pool(self) -> int:
        """Independent samples of a problem."""
        return GROUP * self.groups


class Drawing:
    """Draws what a folder does not hold yet; nothing is drawn before it is asked for. Raises SamplesFileError for
    samples drawn otherwise, Failed, and OSError."""

    def __init__(self, sampling: Sampling, folder: Path, size: Size) -> None:
        self._sampling, self._folder, self._size = sampling, folder, size
        vocab, facts = sampling.runner.vocab_size, sampling.runner.facts
        law = {"temperature": TEMPERATURE}
        self._plain = resolve(law, vocab, facts)
        self._arithmetic = resolve({**law, "draw": "arithmetic"}, vocab, facts)
        self._greedy = resolve({"temperature": 0.0}, vocab, facts)
        self._extraction = read_extraction("hash")
        self._questions = [
            Question(str(i), {"prompt": one.question}, one.question, str(one.answer))
            for i, one in enumerate(word_problems(max(size.problems, size.special_problems)))
        ]
        self._ways: dict[str, tuple[int, _Way]] = {
            INDEPENDENT: (size.problems, self._independent),
            ARITHMETIC: (size.problems, self._by_codes),
            VERBALISED: (size.special_problems, self._verbalised),
            CHAINS: (size.special_problems, self._chains),
            JUDGED: (size.special_problems, self._judged),
        }
        self._journals: dict[str, Journal] = {}
        self._known: dict[str, list[Problem]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def missing(self, *names: str) -> int:
        """Problems without samples of these kinds."""
        return sum(self._ways[name][0] - len(self._journal(name).done) for name in names)

    def read(self, name: str, done: Done) -> list[Problem]:
        """All problems with samples of this kind; `done` is called for each that had none."""
        if name in self._known:
            return self._known[name]
        count, way = self._ways[name]
        journal = self._journal(name)
        items = [item for item in range(count) if str(item) not in journal.done]
        with journal:
            for start in range(0, len(items), _BATCH):
                batch = items[start : start + _BATCH]
                found = way(batch)
                for item in batch:
                    numbered = [replace(sample, index=index) for index, sample in enumerate(found[item])]
                    journal.add(self._questions[item], [write_sample(sample) for sample in numbered])
                    done()
        self._known[name] = read_problems(journal.path)
        return self._known[name]

    def _journal(self, name: str) -> Journal:
        if name not in self._journals:
            path, questions = self._folder / f"{name}.jsonl", self._questions[: self._ways[name][0]]
            self._journals[name] = Journal(path, self._settings(name), questions)
        return self._journals[name]

    def _settings(self, name: str) -> dict[str, Any]:
        uncounted = {"problems", "special_problems", "repeats"}
        return {
            "model": TARGET,
            "kind": name,
            "temperature": TEMPERATURE,
            "group": GROUP,
            "problems_seed": EVALUATION_SEED,
            **{field: value for field, value in asdict(self._size).items() if field not in uncounted},
        }

    def _independent(self, items: Sequence[int]) -> dict[int, list[Sample]]:
        return self._groups(items, self._plain, TOP, lambda seed: range(GROUP))

    def _by_codes(self, items: Sequence[int]) -> dict[int, list[Sample]]:
        return self._groups(items, self._arithmetic, None, lambda seed: code_order(seed, GROUP))

    def _groups(
        self, items: Sequence[int], chain: Chain, top: int | None, order: Callable[[int], Sequence[int]]
    ) -> dict[int, list[Sample]]:
        seeds = {(item, group): group * _SEEDS + item for item in items for group in range(self._size.groups)}
        asked = {place: [self._questions[place[0]].prompt] for place in seeds}
        answers = self._answers(self._job(place, chain, asked[place], seeds[place], GROUP, top) for place in seeds)
        found: dict[int, list[Sample]] = {item: [] for item in items}
        for place, seed in seeds.items():
            samples = answers[place].samples
            found[place[0]] += [self._sample(samples[choice]) for choice in order(seed)]
        return found

    def _verbalised(self, items: Sequence[int]) -> dict[int, list[Sample]]:
        asked = {item: f"{self._questions[item].prompt}\n\n{INSTRUCTION}" for item in items}
        answers = self._answers(
            self._job(item, self._plain, [asked[item]], item, self._size.verbalised) for item in items
        )
        return {item: [self._sample(sample) for sample in answers[item].samples] for item in items}

    def _chains(self, items: Sequence[int]) -> dict[int, list[Sample]]:
        """Those of one problem stand behind one another."""
        places = list(itertools.product(items, range(self._size.chains)))
        chains = {place: Attempts(ATTEMPTS) for place in places}
        found: dict[tuple[int, int], list[Sample]] = {place: [] for place in places}
        for attempt in range(ATTEMPTS):
            jobs = []
            for item, number in places:
                turns = [self._questions[item].prompt, *(turn.content for turn in chains[item, number].turns())]
                seed = attempt * _SEEDS + number * len(self._questions) + item
                jobs.append(self._job((item, number), self._plain, turns, seed, 1, TOP))
            answers = self._answers(jobs)
            for place in places:
                found[place].append(self._sample(answers[place].samples[0]))
                chains[place].add(found[place][-1].text)
        return {item: [one for number in range(self._size.chains) for one in found[item, number]] for item in items}

    def _judged(self, items: Sequence[int]) -> dict[int, list[Sample]]:
        """The replies, in the order of `judged_votes`; an empty one where there was nothing to ask."""
        problems = {problem.id: problem for problem in self.read(INDEPENDENT, lambda: None)}
        jobs: list[Job] = []
        for item in items:
            for place, vote in enumerate(judged_votes(problems[str(item)], self._size)):
                if vote.question is not None:
                    job = self._job((item, place), self._greedy, [vote.question.prompt], item, 1)
                    jobs.append(replace(job, max_tokens=MAX_TOKENS))
        answers = self._answers(jobs)
        votes = range(len(JUDGED_KS) * self._size.special_repeats)
        silent = Sample(0, "")
        return {
            item: [
                self._sample(answers[item, place].samples[0]) if (item, place) in answers else silent for place in votes
            ]
            for item in items
        }

    def _job(self, key: Hashable, chain: Chain, turns: Sequence[str], seed: int, n: int, top: int | None = None) -> Job:
        prompt = dialogue(self._sampling.codec.fast, turns)
        return Job(key, chain, prompt, seed, n, self._size.solution_tokens, top=top)

    def _answers(self, jobs: Sequence[Job] | Iterator[Job]) -> dict[Any, Answer]:
        return self._sampling.answers(list(jobs), lambda: None)

    def _sample(self, found: Sampled) -> Sample:
        return as_sample(found, self._sampling.codec.decode(found.tokens), self._extraction)


_Way = Callable[[Sequence[int]], dict[int, list[Sample]]]  # numbers of problems -> their samples


@dataclass(frozen=True)
class JudgedVote:
    """A vote in which a judge has to choose."""

    k: int
    repeat: int
    samples: Sequence[Sample]
    question: Asked | None  # None: there is nothing to choose from


def judging() -> Judging:
    rule = VOTING_RULES.get("usc")
    assert isinstance(rule, Judging)
    return rule


def judged_votes(problem: Problem, size: Size) -> Iterator[JudgedVote]:
    rule = judging()
    read = Poll(VOTING_RULES.get("usc"), {}, READING).read(problem)
    for repeat, k in itertools.product(range(size.special_repeats), JUDGED_KS):
        samples = drawn(read, k, repeat)
        asked = rule.ask(problem.prompt, samples, {"shuffle": True, "drop_abstain": True}, repeat)
        yield JudgedVote(k, repeat, samples, asked)


def as_sample(found: Sampled, text: str, extraction: Extraction) -> Sample:
    """What was drawn as something that can vote."""
    answer = extraction.answer(text)
    ids = tuple(found.tokens) if found.ending is None else (*found.tokens, found.ending)
    return Sample(
        0,
        text,
        answer=None if answer is None else answer.answer,
        token_ids=ids,
        n_tokens=len(ids),
        mean_logprob=sum(found.logprobs) / len(found.logprobs) if found.logprobs else None,
        finish_reason="length" if found.ending is None else "stop",
        entropies=tuple(entropies(found.top).round(_DIGITS).tolist()) if found.top else None,
        confidences=tuple(confidences(found.top).round(_DIGITS).tolist()) if found.top else None,
    )


def code_order(seed: int, n: int) -> list[int]:
    """The choices of a request in the order of their codes, which depends on its seed."""
    return sorted(range(n), key=lambda choice: fresh("lattice", Stream(seed, choice), n).x)


def sub_group(k: int, start: int) -> range:
    """Places of k codes among `GROUP` in order, evenly spread; start: 0 to GROUP / k - 1.

    Codes of a group are (s + u) / GROUP with one u for all s. Every (GROUP/k)-th of them is (s' + u') / k with u' =
    (start + u) k / GROUP, so with a random start it is an arithmetic group of k.
    """
    return range(start, GROUP, GROUP // k)
