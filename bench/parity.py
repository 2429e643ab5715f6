"""Log-likelihoods as lm-eval-harness reads them: our HTTP server beside its own `hf` backend, on one model.

`python -m bench.parity --lm-eval <path of the lm_eval command>`. The harness is never imported: it lives in an
environment of its own (`pip install "lm-eval[api]==0.4.13" torch transformers accelerate`). Log-likelihoods have to
agree within 1e-4 (of a rolling text of thousands of tokens: within a relative 1e-6, what float32 can hold) and every
`is_greedy` exactly; the command ends with status 1 otherwise.

The harness takes id 0 for "no token", so with its default remote tokenizer it would start rolling texts of the embedded
model (whose begin token has id 0) with the end token: `tokenizer_backend=huggingface` avoids that.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench.server_process import ServerProcess
from models.corpus import source_text
from models.embedded import locate
from models.problems import problems

TOLERANCE = 1e-4  # of a log-likelihood
RELATIVE = 1e-6  # of a rolling sum
LENGTH = 1024  # tokens both backends may see at once; rolling texts are longer than this
TASKS = {
    "target": {"output_type": "loglikelihood", "doc_to_text": "{{question}}", "doc_to_target": "{{solution}}"},
    "choice": {"output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}"}
    | {"doc_to_target": "{{label}}"},
    "rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"},
}
METRICS = {"target": "perplexity", "choice": "acc", "rolling": "word_perplexity"}


@dataclass(frozen=True)
class Answer:
    """One answer of a backend: the sum of log-probabilities, and whether greedy decoding would say the same."""

    logprob: float
    greedy: bool | None  # None: the request has no such flag


def main(
    lm_eval: Annotated[str, typer.Option(help="The harness's command, in its own environment.")] = "lm_eval",
    model: Annotated[str, typer.Option(help="Embedded model or folder.")] = "drafthouse-tiny",
    documents: Annotated[int, typer.Option(help="Documents of each task.")] = 100,
) -> None:
    """Run both backends over the same tasks and compare answer by answer."""
    folder = str(locate(model))
    console = Console()
    with tempfile.TemporaryDirectory() as scratch, ServerProcess("--model", model) as server:
        tasks = Path(scratch) / "tasks"
        _write_tasks(tasks, documents)
        own = f"pretrained={folder},dtype=float32,max_length={LENGTH}"
        ours = f"base_url={server.url}/v1/completions,model={model},tokenizer={folder},tokenized_requests=True"
        ours += ",tokenizer_backend=huggingface,num_concurrent=8"
        ours += f",max_length={LENGTH + 2}"  # two less are used: one to generate, one for the prefix
        answers = {}
        for backend, arguments in (("hf", own), ("local-completions", ours)):
            with console.status(f"lm_eval --model {backend}"):
                answers[backend] = _run(lm_eval, backend, arguments, tasks, Path(scratch) / backend)
    failed = False
    console.print("task     answers  largest difference  is_greedy differs", highlight=False)
    for task in TASKS:
        pairs = list(zip(answers["hf"][task], answers["local-completions"][task], strict=True))
        largest = max(abs(one.logprob - other.logprob) for one, other in pairs)
        apart = sum(abs(one.logprob - other.logprob) > _allowed(task, one) for one, other in pairs)
        flags = sum(one.greedy != other.greedy for one, other in pairs)
        failed |= apart > 0 or flags > 0
        console.print(f"{task:8} {len(pairs):7}  {largest:18.1e}  {flags:17}", highlight=False)
    raise typer.Exit(int(failed))


def _allowed(task: str, answer: Answer) -> float:
    return max(TOLERANCE, RELATIVE * abs(answer.logprob)) if task == "rolling" else TOLERANCE


def _write_tasks(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = random.Random(0)
    asked = []
    for problem in islice(problems(seed=1, held_out=True), count):
        choices = rng.sample([str(problem.answer + by) for by in (-10, -1, 0, 1, 10)], 5)
        asked.append(
            {
                "question": problem.question,
                "solution": " " + problem.solution,
                "choices": choices,
                "label": choices.index(str(problem.answer)),
            }
        )
    sources = [{"text": source[:12_000]} for source in source_text(held_out=True) if len(source) > 500]
    data = {"target": asked, "choice": asked, "rolling": rng.sample(sources, min(count, 20))}
    for name, fields in TASKS.items():
        rows = folder / f"{name}.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in data[name]))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "test_split": "test",
            "metric_list": [{"metric": METRICS[name]}],
            **fields,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # YAML reads JSON


def _run(command: str, backend: str, arguments: str, tasks: Path, output: Path) -> dict[str, list[Answer]]:
    call = [command, "--model", backend, "--model_args", arguments, "--tasks", ",".join(TASKS)]
    call += ["--include_path", str(tasks), "--output_path", str(output), "--log_samples", "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(call)}\n{done.stderr[-4000:]}")
    return {task: _read(output, task) for task in TASKS}


def _read(output: Path, task: str) -> list[Answer]:
    (path,) = output.rglob(f"samples_{task}_*.jsonl")
    rows = sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda row: row["doc_id"])
    return [_answer(response) for row in rows for response in row["resps"]]


def _answer(response: list[Any]) -> Answer:
    """Logged as `[[logprob, greedy]]` or, for rolling requests, `[logprob]`; numbers may be written as strings."""
    value = response[0]
    if isinstance(value, list):
        return Answer(float(value[0]), str(value[1]) == "True")
    return Answer(float(value), None)


if __name__ == "__main__":
    typer.run(main)
