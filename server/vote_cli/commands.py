"""The `drafthouse vote` commands. What they do is in `run.py` and `offline.py`, imported when needed."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from server.failure import fail

vote = typer.Typer(
    help="Voting over repeated samples: draw them, and see what votes give and how sure they are.", no_args_is_help=True
)


class Rpc(StrEnum):
    """Whose RPC."""

    OURS = "ours"
    PUBLISHED = "published"


class Endpoint(StrEnum):
    """Where samples are asked for."""

    CHAT = "chat"
    COMPLETIONS = "completions"


File = Annotated[Path, typer.Argument(help="samples: a problem per line, or one JSON in the layout of RPC's authors")]
Methods = Annotated[str, typer.Option(help="voting rules, with commas between")]
Params = Annotated[str | None, typer.Option(help='their parameters as JSON: {"rpc": {"min_paths": 16}}')]
Equiv = Annotated[str, typer.Option(help="which answers are the same: string, exact, math_verify, published, or JSON")]
ReExtract = Annotated[bool, typer.Option("--re-extract", help="find the answers in the completions anew")]
Extract = Annotated[str | None, typer.Option(help="how, with --re-extract: a name, or JSON as in a request (auto)")]
EndOfReasoning = Annotated[str | None, typer.Option(help="marker after which answers stand, with --re-extract")]
KeepTruncated = Annotated[bool, typer.Option("--keep-truncated", help="samples that were cut off may vote")]
RpcOption = Annotated[Rpc, typer.Option(help="published: fit and count as RPC's evaluator does")]
Repeats = Annotated[int, typer.Option(min=1, help="times that the samples are shuffled")]
Seed = Annotated[int, typer.Option(help="of the first shuffle; the others count on from it")]
Json = Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")]
Plot = Annotated[Path | None, typer.Option(help="also draw a picture (PNG); needs drafthouse\\[bench]")]


@vote.command()
def run(
    problems: Annotated[
        Path, typer.Argument(help='a problem per line: {"id", "prompt" or "messages", "gold" (the right answer)}')
    ],
    out: Annotated[Path | None, typer.Option(help="file for the samples (PROBLEMS, as .samples.jsonl)")] = None,
    url: Annotated[str, typer.Option(help="of the server, up to /v1")] = "http://127.0.0.1:8000/v1",
    model: Annotated[str | None, typer.Option(help="as the server calls it (the first it lists)")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="sent to the server")] = None,
    endpoint: Annotated[Endpoint, typer.Option(help="which one is asked")] = Endpoint.CHAT,
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="per problem")] = 16,
    temperature: Annotated[float | None, typer.Option(min=0, help="the server's own if absent")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="the server's own if absent")] = None,
    sampler: Annotated[str | None, typer.Option(help="Drafthouse's field: a name or JSON, as in a request")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="per sample; the server's own limit if absent")] = None,
    seed: Annotated[int, typer.Option(help="requests have seeds made of it; of the shuffles too")] = 0,
    top_logprobs: Annotated[
        int, typer.Option(min=0, max=100, help="alternatives per token behind what iew and deepconf read; 0: none")
    ] = 20,
    concurrency: Annotated[int, typer.Option(min=1, help="requests at a time")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds for a request")] = 600.0,
    retries: Annotated[int, typer.Option(min=0, help="of a request that the server cannot answer now")] = 5,
    methods: Methods = "sc,pc,rpc,ppl",
    params: Params = None,
    k: Annotated[str | None, typer.Option(help="samples per vote, with commas between (powers of 2)")] = None,
    repeats: Repeats = 10,
    equiv: Equiv = "exact",
    extract: Annotated[str, typer.Option(help="which part of a completion is its answer, as in a request")] = "auto",
    end_of_reasoning: Annotated[str | None, typer.Option(help="marker after which answers stand")] = None,
    keep_truncated: KeepTruncated = False,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Draw samples of problems from a server, then compare voting rules on them.

    Works with any OpenAI-compatible server that gives log-probabilities; rules that count do
    without. A run that was stopped goes on when it is started again.

    \b
    drafthouse vote run problems.jsonl --samples 16 --temperature 0.8
    drafthouse vote run problems.jsonl --url http://gpu:8000/v1 --concurrency 64 --out samples.jsonl
    """
    _run("run", locals())


@vote.command()
def replay(
    file: File,
    methods: Methods = "sc,pc,rpc,ppl",
    k: Annotated[str | None, typer.Option(help="samples per vote, with commas between (powers of 2)")] = None,
    repeats: Repeats = 10,
    seed: Seed = 0,
    params: Params = None,
    equiv: Equiv = "exact",
    rpc: RpcOption = Rpc.OURS,
    re_extract: ReExtract = False,
    extract: Extract = None,
    end_of_reasoning: EndOfReasoning = None,
    keep_truncated: KeepTruncated = False,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Compare voting rules on the same samples, and how often any sample is right.

    \b
    drafthouse vote replay samples.jsonl --methods sc,rpc --k 8,16,64
    drafthouse vote replay MATH.json --equiv published --rpc published --json out.json
    """
    _run("replay", locals())


@vote.command()
def coverage(
    file: File,
    k: Annotated[str | None, typer.Option(help="samples, with commas between (1, 2, 5, 10, ...)")] = None,
    seed: Annotated[int, typer.Option(help="of the bootstrap")] = 0,
    equiv: Equiv = "exact",
    re_extract: ReExtract = False,
    extract: Extract = None,
    end_of_reasoning: EndOfReasoning = None,
    keep_truncated: KeepTruncated = False,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """How often at least one of k samples is right (unbiased pass@k), and a power law through it."""
    _run("coverage", locals())


@vote.command()
def calibrate(
    file: File,
    methods: Methods = "sc,pc,rpc,ppl",
    k: Annotated[int | None, typer.Option(min=1, help="samples per vote (all)")] = None,
    bins: Annotated[int, typer.Option(min=1, max=100, help="of the reliability table")] = 10,
    seed: Annotated[int, typer.Option(help="of the shuffle and the bootstrap")] = 0,
    params: Params = None,
    equiv: Equiv = "exact",
    rpc: RpcOption = Rpc.OURS,
    re_extract: ReExtract = False,
    extract: Extract = None,
    end_of_reasoning: EndOfReasoning = None,
    keep_truncated: KeepTruncated = False,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """How far the confidences of votes are from how often they are right."""
    _run("calibrate", locals())


@vote.command()
def stop(
    file: File,
    stop: Annotated[
        list[str] | None, typer.Option(help="stopping rule, a name or JSON as in a request; repeatable (all rules)")
    ] = None,
    method: Annotated[str, typer.Option(help="voting rule that gives the answer")] = "sc",
    samples: Annotated[int | None, typer.Option(min=1, help="drawn at most (40, or all there are)")] = None,
    repeats: Repeats = 10,
    seed: Seed = 0,
    params: Params = None,
    equiv: Equiv = "exact",
    re_extract: ReExtract = False,
    extract: Extract = None,
    end_of_reasoning: EndOfReasoning = None,
    keep_truncated: KeepTruncated = False,
    json: Json = None,
) -> None:
    """Try stopping rules: how many samples they save, and at which loss of accuracy.

    \b
    drafthouse vote stop samples.jsonl --stop beta --stop '{"rule": "esc", "window": 4}'
    """
    _run("stop", locals())


def _run(command: str, options: dict[str, Any]) -> None:
    from bench.figures import NoFigures
    from samplers.contract import SamplerError
    from server.vote_cli import offline
    from server.vote_cli import run as online
    from server.vote_cli.remote import CannotGoOn
    from voting.samples_file import SamplesFileError

    do: Callable[..., None] = online.run if command == "run" else getattr(offline, command)
    try:
        do(**options)
    except (CannotGoOn, NoFigures, OSError, SamplerError, SamplesFileError) as error:
        fail(str(error))
