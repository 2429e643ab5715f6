"""The `drafthouse` command. Imports of torch wait until a command needs them, so `--help` answers at once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from server.config import ConfigError, ServeConfig, load_config
from server.failure import STARTUP_EXIT as STARTUP_EXIT
from server.failure import fail
from server.vote_cli.commands import vote

app = typer.Typer(
    help="OpenAI-compatible inference server in which the decoding algorithm is a request parameter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Side-by-side benchmarks; every table names its hardware and its peer.", no_args_is_help=True)
app.add_typer(bench, name="bench")
app.add_typer(vote, name="vote")


class BenchPart(StrEnum):
    """The parts of `bench samplers`."""

    QUALITY = "quality"
    COST = "cost"
    ALL = "all"


class ProgramPart(StrEnum):
    """The parts of `bench programs`."""

    PRIORITY = "priority"
    SUPERPOSED = "superposed"
    EAGER = "eager"
    ALL = "all"


class VotingPart(StrEnum):
    """The parts of `bench voting`."""

    RULES = "rules"
    SPECIAL = "special"
    STOPPING = "stopping"
    DRAWS = "draws"
    COST = "cost"
    ALL = "all"


class SpecPart(StrEnum):
    """The parts of `bench spec`."""

    SPEED = "speed"
    LOAD = "load"
    ACCEPTANCE = "acceptance"
    PASSES = "passes"
    VOCABULARY = "vocabulary"
    OVERHEAD = "overhead"
    ALL = "all"


def _help(name: str) -> str:
    return ServeConfig.model_fields[name].description or ""


def _option(name: str, *flags: str) -> Any:
    return typer.Option(*flags, help=_help(name), show_default=False)


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="YAML file of settings and presets")] = None,
    host: Annotated[str | None, _option("host")] = None,
    port: Annotated[int | None, _option("port")] = None,
    model: Annotated[str | None, _option("model")] = None,
    draft_model: Annotated[str | None, _option("draft_model")] = None,
    draft_ranking: Annotated[str | None, _option("draft_ranking")] = None,
    draft_vocab: Annotated[list[str] | None, _option("draft_vocab")] = None,
    spec_max_len: Annotated[int | None, _option("spec_max_len")] = None,
    spec_past_outputs_s: Annotated[float | None, _option("spec_past_outputs_s")] = None,
    spec_past_outputs: Annotated[
        bool | None, _option("spec_past_outputs", "--spec-past-outputs/--no-spec-past-outputs")
    ] = None,
    require_lossless: Annotated[
        bool | None, _option("require_lossless", "--require-lossless/--no-require-lossless")
    ] = None,
    ngrams: Annotated[str | None, _option("ngrams")] = None,
    served_name: Annotated[str | None, _option("served_name")] = None,
    runner: Annotated[str | None, _option("runner")] = None,
    vllm_args: Annotated[list[str] | None, _option("vllm_args", "--vllm-arg", "--vllm-args")] = None,
    vllm_native: Annotated[bool | None, _option("vllm_native", "--vllm-native/--no-vllm-native")] = None,
    vllm_filter_mode: Annotated[str | None, _option("vllm_filter_mode")] = None,
    headless: Annotated[bool | None, _option("headless", "--headless/--no-headless")] = None,
    device: Annotated[str | None, _option("device")] = None,
    dtype: Annotated[str | None, _option("dtype")] = None,
    api_key: Annotated[list[str] | None, _option("api_key")] = None,
    max_model_len: Annotated[int | None, _option("max_model_len")] = None,
    max_seqs: Annotated[int | None, _option("max_seqs")] = None,
    max_batch_tokens: Annotated[int | None, _option("max_batch_tokens")] = None,
    chunk_tokens: Annotated[int | None, _option("chunk_tokens")] = None,
    kv_bytes: Annotated[int | None, _option("kv_bytes")] = None,
    page_size: Annotated[int | None, _option("page_size")] = None,
    max_queued_requests: Annotated[int | None, _option("max_queued_requests")] = None,
    max_queued_tokens: Annotated[int | None, _option("max_queued_tokens")] = None,
    max_body_bytes: Annotated[int | None, _option("max_body_bytes")] = None,
    max_k: Annotated[int | None, _option("max_k")] = None,
    threads: Annotated[int | None, _option("threads")] = None,
    replay: Annotated[bool | None, _option("replay", "--replay/--no-replay")] = None,
    grace_s: Annotated[float | None, _option("grace_s")] = None,
    cors_origins: Annotated[list[str] | None, _option("cors_origins")] = None,
    allow_chat_template: Annotated[
        bool | None, _option("allow_chat_template", "--allow-chat-template/--no-allow-chat-template")
    ] = None,
    vote_ttl_s: Annotated[float | None, _option("vote_ttl_s")] = None,
    max_votes: Annotated[int | None, _option("max_votes")] = None,
    vote_bytes: Annotated[int | None, _option("vote_bytes")] = None,
    scorers: Annotated[list[str] | None, _option("scorers", "--scorer", "--scorers")] = None,
    code_executor: Annotated[str | None, _option("code_executor")] = None,
    log_level: Annotated[str | None, _option("log_level")] = None,
) -> None:
    """Serve a model: the embedded one without arguments, or any Hugging Face decoder.

    Settings come from the built-in defaults, then --config, then DRAFTHOUSE_* variables, then flags; the last
    one wins. Every flag has a variable (--max-seqs: DRAFTHOUSE_MAX_SEQS) and a line of the same name in the file.

    \b
    drafthouse serve
    drafthouse serve --model ./my-llama --port 9000 --api-key secret
    DRAFTHOUSE_API_KEY=secret drafthouse serve --config drafthouse.yaml
    """
    flags = {name: value for name, value in locals().items() if name != "config"}
    _run_or_explain(flags, config)


def _run_or_explain(flags: dict[str, Any], file: Path | None) -> None:
    try:
        settings = load_config(flags, os.environ, file or _file_from_environment())
    except ConfigError as error:
        fail(str(error))
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _quiet_libraries()
    from server.launch import follow, prepare, run

    if settings.headless:
        with _explained(settings.model):
            status = follow(settings)
        raise typer.Exit(status)
    with _explained(settings.model):
        prepared = prepare(settings)
    raise typer.Exit(run(prepared))


@contextmanager
def _explained(model: str) -> Iterator[None]:
    """Turns what can go wrong before anything runs into one readable line and exit status 2."""
    from engine.runners.torch.gate import UnsupportedModelError
    from engine.settings import SettingsError
    from samplers.contract import SamplerError
    from server.presets import PresetError

    try:
        yield
    except (ConfigError, PresetError, SamplerError, SettingsError, UnsupportedModelError) as error:
        fail(str(error))
    except BrokenPipeError:  # as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it flushes
        raise typer.Exit(1) from None
    except (OSError, ValueError) as error:  # transformers' answers to a folder or hub id it cannot use
        fail(f"cannot load model '{model}': {_first_line(error)}")
    except Exception as error:
        logging.getLogger(__name__).debug("the start failed", exc_info=error)
        fail(f"cannot start with model '{model}': {type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _file_from_environment() -> Path | None:
    path = os.environ.get("DRAFTHOUSE_CONFIG")
    return Path(path) if path else None


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="text to continue, or the user's message with --chat")],
    model: Annotated[str, typer.Option(help=_help("model"))] = "drafthouse-tiny",
    chat: Annotated[bool, typer.Option(help="apply the model's chat template")] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="tokens to generate at most; 128, or what is usual for a program")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", min=1, max=128, help="number of choices; 1, or what is usual for a program")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="repeat a result; drawn and printed when absent")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; 1 if neither this nor --sampler says")] = None,
    sampler: Annotated[str | None, typer.Option(help="sampler as JSON or a name, as in a request")] = None,
    device: Annotated[str | None, typer.Option(help=_help("device"))] = None,
    dtype: Annotated[str | None, typer.Option(help=_help("dtype"))] = None,
    ngrams: Annotated[str | None, typer.Option(help=_help("ngrams"))] = None,
) -> None:
    """Generate once without a server, streaming to the terminal.

    \b
    drafthouse generate "def read_lines(path):" --temperature 0.3
    drafthouse generate --chat "Mia has 7 apples. She buys 5 more. How many apples does Mia have now?" -n 4
    """
    _quiet_libraries()
    from server.generate_once import generate_once

    with _explained(model):
        generate_once(prompt, model, chat, max_tokens, n, seed, temperature, sampler, device, dtype, ngrams)


@app.command()
def explain(
    prompt: Annotated[str, typer.Argument(help="text to continue, or the user's message with --chat")],
    model: Annotated[str, typer.Option(help=_help("model"))] = "drafthouse-tiny",
    chat: Annotated[bool, typer.Option(help="apply the model's chat template")] = False,
    sampler: Annotated[
        str | None, typer.Option(help="a name, or JSON as in a request: an object with a name, or a list of those")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; 1 if neither this nor --sampler says")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=1024, help="tokens to generate at most")] = 8,
    seed: Annotated[int | None, typer.Option(help="repeat a result; drawn and printed when absent")] = None,
    top: Annotated[int, typer.Option(min=1, max=20, help="tokens to show from each end of the chain")] = 5,
    html: Annotated[Path | None, typer.Option(help="also write a page with a picture of every token")] = None,
    device: Annotated[str | None, typer.Option(help=_help("device"))] = None,
    dtype: Annotated[str | None, typer.Option(help=_help("dtype"))] = None,
) -> None:
    """Show, token by token, what each stage of a sampler kept and removed.

    Every token is a table. Its first column is the model's own distribution,
    then comes one column per stage in the order they run: how many tokens are
    possible, the probability of what the stage removed, the entropy in nats,
    and the most probable tokens. The lines above it say what was drawn, and with
    which random number.

    A server gives the same numbers for requests with "return_sampler_trace": true.

    \b
    drafthouse explain "def read_lines(path):" --sampler min_p
    drafthouse explain "import" --sampler '{"name": "min_p", "min_p": 0.2}'
    drafthouse explain "for i" --sampler '["top_k", "typical"]' --html page.html
    drafthouse explain "3 + 4 =" --chat --temperature 0.8 --seed 7
    """
    _quiet_libraries()
    from server.explain import explain as run_explain

    with _explained(model):
        run_explain(prompt, model, chat, sampler, temperature, max_tokens, seed, top, html, device, dtype)


@app.command()
def index(
    files: Annotated[list[Path], typer.Argument(help="text files, and folders of them")],
    output: Annotated[Path, typer.Option(help="file to write, for `drafthouse serve --ngrams`")],
    model: Annotated[str, typer.Option(help="whose tokens are counted: " + _help("model"))] = "drafthouse-tiny",
    orders: Annotated[int, typer.Option(min=2, max=6, help="tokens of the longest n-grams")] = 6,
) -> None:
    """Count the n-grams of texts, for superposed decoding.

    Every file is one text in UTF-8; other files are left out, and so are hidden ones in folders. The counts belong
    to the tokenizer of the model: a server with another tokenizer refuses them.

    \b
    drafthouse index src docs/notes.txt --output ngrams.npz
    drafthouse serve --ngrams ngrams.npz
    """
    _quiet_libraries()
    from server.index import write_index

    with _explained(model):
        write_index(files, model, output, orders)


@app.command()
def rank(
    files: Annotated[list[Path], typer.Argument(help="text files, and folders of them")],
    output: Annotated[Path, typer.Option(help="file to write, for `drafthouse serve --draft-ranking`")],
    model: Annotated[str, typer.Option(help="whose tokens are ranked: " + _help("model"))] = "drafthouse-tiny",
) -> None:
    """Rank tokens by how often texts need them, for draft models that choose from a part of the vocabulary.

    Files are read as by `drafthouse index`. Printed is the share of the texts that the first tokens cover. Tokens that
    chat templates write, and single bytes, come first whatever their counts. The ranking belongs to the tokenizer of
    the model: a server with another tokenizer refuses it.

    \b
    drafthouse rank src docs --output ranking.npz
    """
    _quiet_libraries()
    from server.rank import write_ranking

    with _explained(model):
        write_ranking(files, model, output)


@app.command()
def models() -> None:
    """List the embedded models and what is known about them."""
    import json

    from models.embedded import EMBEDDED

    for name, folder in EMBEDDED.items():
        facts = json.loads((folder / "config.json").read_text())
        size = (folder / "model.safetensors").stat().st_size / 4e6  # fp32
        typer.echo(
            f"{name:<24} {size:4.1f} M parameters, {facts['num_hidden_layers']} layers of {facts['hidden_size']}, "
            f"context {facts['max_position_embeddings']}\n{'':<24} {folder}"
        )


@bench.command("serve")
def bench_serve(
    model: Annotated[str, typer.Option(help=_help("model"))] = "drafthouse-tiny",
    rounds: Annotated[int, typer.Option(min=1, help="interleaved rounds per figure")] = 5,
    max_tokens: Annotated[int, typer.Option(min=1, help="new tokens per request")] = 128,
    threads: Annotated[int | None, typer.Option(help=_help("threads"))] = None,
    output: Annotated[Path | None, typer.Option(help="also write the table to this Markdown file")] = None,
) -> None:
    """Throughput and latency through HTTP beside Hugging Face `generate`, interleaved in one run."""
    _quiet_libraries()
    from bench.serve import main as run_bench

    run_bench(model, rounds, max_tokens, threads, output)


@bench.command("samplers")
def bench_samplers(
    part: Annotated[BenchPart, typer.Option(help="what to measure")] = BenchPart.ALL,
    problems: Annotated[
        int | None, typer.Option(min=2, help="held-out problems, and three quarters as many source prompts [28]")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=2, help="times that a problem's samples are drawn anew [4]")] = None,
    output: Annotated[Path | None, typer.Option(help="also write Markdown, JSON and a PNG to this folder")] = None,
    quick: Annotated[bool, typer.Option(help="a minute instead of a quarter of an hour; wide intervals")] = False,
    threads: Annotated[int, typer.Option(min=1, help=_help("threads"))] = 2,
) -> None:
    """What every decoding method does to the embedded model's texts, and what it costs per step.

    Quality: variety, likelihood, repetition and right answers on held-out source and word problems, with intervals;
    whether arithmetic draws have a lower deviation than independent ones, and typical sampling fewer repetitions
    than top-p at equal likelihood. Cost: 64 rows of 128,000 logits beside softmax and torch.multinomial.

    \b
    drafthouse bench samplers --quick
    drafthouse bench samplers --part quality --output results
    """
    _quiet_libraries()
    from bench.figures import NoFigures
    from bench.samplers import main as run_bench

    try:
        run_bench(part.value, problems, seeds, output, quick, threads)
    except (NoFigures, OSError) as error:
        fail(str(error))


@bench.command("programs")
def bench_programs(
    part: Annotated[ProgramPart, typer.Option(help="what to measure")] = ProgramPart.ALL,
    output: Annotated[Path | None, typer.Option(help="also write Markdown, JSON and PNGs to this folder")] = None,
    quick: Annotated[
        bool, typer.Option(help="a minute or two instead of a quarter of an hour; wide intervals")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help=_help("threads"))] = 2,
    ngrams: Annotated[bool, typer.Option(help="superposed drafts with n-grams of the training source too")] = True,
) -> None:
    """What programs give and cost beside samples of the embedded model, on held-out source and word problems.

    Priority: different completions, right ones among the first n, forward passes and tokens. Superposed: wall time
    against n samples in turn and batched, and how often a continuation is among n drafts. EAGER: tokens saved at an
    equal share of solved problems. Every table ends with what is claimed and whether it is reproduced; the status is 1
    if something does not hold that has to.

    \b
    drafthouse bench programs --quick
    drafthouse bench programs --part superposed --output results
    """
    _quiet_libraries()
    from bench.claims import Violated
    from bench.figures import NoFigures
    from bench.programs import main as run_bench

    try:
        run_bench(part.value, output, quick, threads, ngrams)
    except (NoFigures, OSError) as error:
        fail(str(error))
    except Violated as error:
        fail(f"does not hold: {error}", status=1)


@bench.command("voting")
def bench_voting(
    part: Annotated[VotingPart, typer.Option(help="what to measure")] = VotingPart.ALL,
    samples: Annotated[
        Path | None, typer.Option(help="folder of samples: those it lacks are drawn and kept for the next time")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="also write Markdown, JSON and PNGs to this folder")] = None,
    quick: Annotated[bool, typer.Option(help="a minute or two instead of half an hour; wide intervals")] = False,
    threads: Annotated[int, typer.Option(min=1, help=_help("threads"))] = 2,
) -> None:
    """What votes over samples of the embedded model are worth, on held-out word problems.

    Rules: accuracy and calibration of every rule against the number of samples. Special: rules with prompts of their
    own, chains and aborted samples. Stopping: samples saved and points lost. Draws: arithmetic samples beside
    independent ones, and coverage. Cost: a vote through HTTP beside n = 16. Every table ends with what papers claim
    and whether it is reproduced. Samples are files that `drafthouse vote` reads.

    \b
    drafthouse bench voting --quick
    drafthouse bench voting --part rules --samples drawn --output results
    """
    _quiet_libraries()
    import httpx

    from bench.figures import NoFigures
    from bench.voting import main as run_bench
    from voting.samples_file import SamplesFileError

    try:
        run_bench(part.value, samples, output, quick, threads)
    except (NoFigures, OSError, SamplesFileError, httpx.HTTPError) as error:
        fail(str(error))


@bench.command("spec")
def bench_spec(
    part: Annotated[SpecPart, typer.Option(help="what to measure")] = SpecPart.ALL,
    output: Annotated[Path | None, typer.Option(help="also write Markdown, JSON and PNGs to this folder")] = None,
    quick: Annotated[bool, typer.Option(help="a few minutes instead of more than an hour; wide intervals")] = False,
    threads: Annotated[int, typer.Option(min=1, help=_help("threads"))] = 2,
) -> None:
    """What speculation gives and costs beside plain decoding, for the embedded pair on held-out source and problems.

    Speed: wall time of one request after the other, every way to draft and verify. Load: throughput of 16 requests at
    once. Acceptance: drafts for one position, beside the most that any rule could accept. Passes: tokens per pass of
    the target at equal numbers of drafted tokens. Vocabulary: what a part of the draft model's vocabulary saves and
    loses. Overhead: what steps spend outside of forward passes. Every table ends with what is claimed and whether it
    is met; the status is 1 if something does not hold that has to.

    \b
    drafthouse bench spec --quick
    drafthouse bench spec --part passes --output results
    """
    _quiet_libraries()
    from bench.claims import Violated
    from bench.figures import NoFigures
    from bench.sampler_runs import Failed
    from bench.spec import main as run_bench

    try:
        run_bench(part.value, output, quick, threads)
    except (Failed, NoFigures, OSError) as error:
        fail(str(error))
    except Violated as error:
        fail(f"does not hold: {error}", status=1)


@bench.command("runners")
def bench_runners(
    vllm_python: Annotated[
        str | None,
        typer.Option(help="Python with vLLM; default: this one if it has it, else .venv-vllm", show_default=False),
    ] = None,
    torch_python: Annotated[
        str | None, typer.Option(help="Python for the torch runner; default: this one", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option(help="also write Markdown, JSON and a PNG to this folder")] = None,
    quick: Annotated[bool, typer.Option(help="a few minutes, most of them starts; one round says little")] = False,
    profile: Annotated[
        bool, typer.Option(help="afterwards also say where time goes, with py-spy; stacks go to --output")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the model inside vLLM; default: all cores but one")
    ] = None,
    torch_threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the torch runner; default: all cores")
    ] = None,
) -> None:
    """What the runners cost beside vLLM's own server, through HTTP with the embedded model on CPU.

    Throughput and time to first token of streamed requests, 1, 8 and 32 at once: vLLM's server, this one over vLLM
    with the same arguments of the engine, with samplers of ours as well, and this one over torch; and how long each
    takes to start. The table ends with targets and whether they are met; the status is 1 if greedy texts differ.

    \b
    drafthouse bench runners --vllm-python .venv-vllm/bin/python --output results
    """
    if profile and output is None:
        fail("--profile needs --output")
    _quiet_libraries()
    import httpx

    from bench.claims import Violated
    from bench.figures import NoFigures
    from bench.runners import main as run_bench

    try:
        run_bench(output, quick, threads, vllm_python, torch_python, torch_threads, profile)
    except Violated as error:
        fail(f"does not hold: {error}", status=1)
    except (NoFigures, OSError, RuntimeError, httpx.HTTPError) as error:
        fail(str(error))


def _quiet_libraries() -> None:
    """Their progress bars and advice are for people who call them directly, and addresses may hold secrets."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs the address of every call
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def main() -> None:
    """Entry point of the `drafthouse` command."""
    app()


if __name__ == "__main__":
    main()
