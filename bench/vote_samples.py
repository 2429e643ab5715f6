"""The samples that `bench voting` votes over: drawn once, and kept in files that `drafthouse vote replay` reads too.

All of one temperature, at which the model is uncertain. Groups of 64 samples of a problem are drawn independently, and
by arithmetic sampling: a file holds such a group in the order of its codes, so that every (64/K)-th of them, from
anywhere, is an arithmetic group of K (`sub_group`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.held_out import EVALUATION_SEED, dialogue, word_problems
from bench.progress import Done
from bench.sampler_runs import Answer, Job, Sample, Sampling
from samplers.chain import Chain, resolve
from samplers.code import fresh
from samplers.rng import Stream
from voting import token_statistics
from voting.answers.extraction import Extraction, read_extraction
from voting.chain import Chain as Attempts
from voting.rules.verbalised import INSTRUCTION
from voting.samples_file import Problem as Sampled
from voting.samples_file import SamplesFileError, read_problems

GROUP = 64  # samples that are drawn together
TEMPERATURE = 1.0  # the law is the model's own, as the estimates of PC assume; about three samples in five are right
INDEPENDENT, ARITHMETIC, VERBALISED, CHAINS = "independent", "arithmetic", "verbalised", "chains"
ATTEMPTS = 9  # of a chain; the paper has 3, 6 and 9
TOP = 20  # most probable tokens, of which entropies and confidences are taken
_DIGITS = 5  # of these
_BATCH = 10  # problems that are written at once
_SEEDS = 1_000_000  # of one group, for all problems


@dataclass(frozen=True)
class Size:
    """How much is drawn."""

    problems: int = 500
    groups: int = 2  # of each problem, drawn independently, and as many by arithmetic sampling
    special_problems: int = 100  # of rules that need prompts of their own
    verbalised: int = 16  # samples
    chains: int = 4
    solution_tokens: int = 96

    @property
    def pool(self) -> int:
        """Independent samples of a problem."""
        return GROUP * self.groups


class Drawing:
    """Draws what a folder does not hold yet. Raises SamplesFileError for a folder of other samples, and OSError."""

    def __init__(self, sampling: Sampling, folder: Path, size: Size) -> None:
        self._sampling, self._folder, self._size = sampling, folder, size
        vocab, facts = sampling.runner.vocab_size, sampling.runner.facts
        law = {"temperature": TEMPERATURE}
        self._plain = resolve(law, vocab, facts)
        self._arithmetic = resolve({**law, "draw": "arithmetic"}, vocab, facts)
        self._extraction = read_extraction("hash")
        self._problems = word_problems(max(size.problems, size.special_problems))
        self._ways: dict[str, tuple[int, Callable[[Sequence[int], Done], dict[int, list[dict[str, Any]]]]]] = {
            INDEPENDENT: (size.problems, self._independent),
            ARITHMETIC: (size.problems, self._by_codes),
            VERBALISED: (size.special_problems, self._verbalised),
            CHAINS: (size.special_problems, self._chains),
        }
        folder.mkdir(parents=True, exist_ok=True)
        _check_settings(folder, size)

    def missing(self, name: str) -> list[int]:
        """Numbers of the problems without samples of this kind."""
        return list(range(_whole_lines(self._file(name)), self._ways[name][0]))

    def draw(self, name: str, done: Done) -> None:
        """`done` is called once for every problem that was missing."""
        missing, way = self.missing(name), self._ways[name][1]
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            found = way(batch, done)
            with self._file(name).open("a", encoding="utf-8") as file:
                for item in batch:
                    file.write(json.dumps(self._line(item, found[item]), allow_nan=False) + "\n")

    def read(self, name: str) -> list[Sampled]:
        return read_problems(self._file(name))[: self._ways[name][0]]

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"

    def _line(self, item: int, records: list[dict[str, Any]]) -> dict[str, Any]:
        problem = self._problems[item]
        numbered = [{"index": index, **record} for index, record in enumerate(records)]
        return {"id": str(item), "prompt": problem.question, "gold": str(problem.answer), "samples": numbered}

    def _independent(self, items: Sequence[int], done: Done) -> dict[int, list[dict[str, Any]]]:
        return self._groups(items, self._plain, TOP, lambda seed: range(GROUP), done)

    def _by_codes(self, items: Sequence[int], done: Done) -> dict[int, list[dict[str, Any]]]:
        return self._groups(items, self._arithmetic, None, lambda seed: code_order(seed, GROUP), done)

    def _groups(
        self, items: Sequence[int], chain: Chain, top: int | None, order: Callable[[int], Sequence[int]], done: Done
    ) -> dict[int, list[dict[str, Any]]]:
        groups = range(self._size.groups)
        jobs = [
            self._job((item, group), chain, [self._problems[item].question], group * _SEEDS + item, GROUP, top)
            for item in items
            for group in groups
        ]
        answers = self._answers(jobs, done, self._size.groups)
        return {
            item: [
                self._record(answers[item, group].samples[choice])
                for group in groups
                for choice in order(group * _SEEDS + item)
            ]
            for item in items
        }

    def _verbalised(self, items: Sequence[int], done: Done) -> dict[int, list[dict[str, Any]]]:
        jobs = [
            self._job(
                item, self._plain, [f"{self._problems[item].question}\n\n{INSTRUCTION}"], item, self._size.verbalised
            )
            for item in items
        ]
        answers = self._answers(jobs, done, 1)
        return {item: [self._record(sample) for sample in answers[item].samples] for item in items}

    def _chains(self, items: Sequence[int], done: Done) -> dict[int, list[dict[str, Any]]]:
        """Those of one problem stand behind one another."""
        places = list(itertools.product(items, range(self._size.chains)))
        chains = {place: Attempts(ATTEMPTS) for place in places}
        records: dict[tuple[int, int], list[dict[str, Any]]] = {place: [] for place in places}
        for attempt in range(ATTEMPTS):
            jobs = [
                self._job(
                    (item, number),
                    self._plain,
                    [self._problems[item].question, *(turn.content for turn in chains[item, number].turns())],
                    attempt * _SEEDS + number * len(self._problems) + item,
                    1,
                    TOP,
                )
                for item, number in places
            ]
            for place, answer in self._sampling.answers(jobs, lambda: None).items():
                record = self._record(answer.samples[0])
                records[place].append(record)  # type: ignore[index]
                chains[place].add(record["text"])  # type: ignore[index]
        for _ in items:
            done()
        return {item: [one for number in range(self._size.chains) for one in records[item, number]] for item in items}

    def _job(self, key: Hashable, chain: Chain, turns: Sequence[str], seed: int, n: int, top: int | None = None) -> Job:
        prompt = dialogue(self._sampling.codec.fast, turns)
        return Job(key, chain, prompt, seed, n, self._size.solution_tokens, top=top)

    def _answers(self, jobs: Sequence[Job], done: Done, jobs_per_problem: int) -> dict[Hashable, Answer]:
        finished = itertools.count(1)

        def one_more() -> None:
            if next(finished) % jobs_per_problem == 0:
                done()

        return self._sampling.answers(jobs, one_more)

    def _record(self, sample: Sample) -> dict[str, Any]:
        return record(sample, self._sampling.codec.decode(sample.tokens), self._extraction)


def record(sample: Sample, text: str, extraction: Extraction) -> dict[str, Any]:
    """A sample as files and requests spell it (`voting/records.py`)."""
    found = extraction.answer(text)
    ended = sample.ending is not None
    known: dict[str, Any] = {
        "text": text,
        "token_ids": [*sample.tokens, sample.ending] if ended else sample.tokens,
        "mean_logprob": sum(sample.logprobs) / len(sample.logprobs) if sample.logprobs else None,
        "finish_reason": "stop" if ended else "length",
        "answer": None if found is None else found.answer,
    }
    if sample.top:
        known["topk_entropy"] = token_statistics.entropies(sample.top).round(_DIGITS).tolist()
        known["confs"] = token_statistics.confidences(sample.top).round(_DIGITS).tolist()
    return known


def code_order(seed: int, n: int) -> list[int]:
    """The choices of a request in the order of their codes, which depends on its seed."""
    return sorted(range(n), key=lambda choice: fresh("lattice", Stream(seed, choice), n).x)


def sub_group(k: int, start: int) -> range:
    """Places of k codes among `GROUP` in order, evenly spread; start: 0 to GROUP / k - 1.

    Codes of a group are (s + u) / GROUP with one u for all s. Every (GROUP/k)-th of them is (s' + u') / k with u' =
    (start + u) k / GROUP, so with a random start it is an arithmetic group of k.
    """
    return range(start, GROUP, GROUP // k)


def _check_settings(folder: Path, size: Size) -> None:
    """A folder may hold more problems, or fewer; what else was drawn has to be the same."""
    counted = {"problems", "special_problems"}
    mine = {
        "temperature": TEMPERATURE,
        "group": GROUP,
        "attempts": ATTEMPTS,
        "problems_seed": EVALUATION_SEED,
        **{name: value for name, value in asdict(size).items() if name not in counted},
    }
    file = folder / "settings.json"
    if not file.exists():
        file.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    if found != mine:
        raise SamplesFileError(f"{folder} holds samples drawn otherwise: {found}, wanted {mine}")


def _whole_lines(file: Path) -> int:
    """How many there are; what an interrupted run has left behind the last one is cut off."""
    if not file.exists():
        return 0
    text = file.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        file.write_bytes(text[:whole])
    return text.count(b"\n")
