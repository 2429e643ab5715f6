"""One generation without a server, for `drafthouse generate`: the same engine and text handling, to the terminal."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from typing import Any

from rich.console import Console

from engine.request import DecodeRequest, FinishReason
from samplers.chain import resolve
from samplers.programs.contract import PROGRAMS
from server.config import ConfigError, load_config
from server.launch import serve_model
from server.programs import setting
from server.state import ServedModel

MAX_TOKENS = 128  # of a request that does not say


def generate_once(
    prompt: str,
    model: str,
    chat: bool,
    max_tokens: int | None,
    n: int | None,
    seed: int | None,
    temperature: float | None,
    sampler: str | None,
    device: str | None,
    dtype: str | None,
    ngrams: str | None,
) -> None:
    """Print `n` choices, of a program as many as there are; the first streams.

    Raises OSError or ValueError for what cannot be loaded or done.
    """
    check_seed(seed)
    notes = Console(stderr=True)
    fields: dict[str, Any] = {"temperature": temperature, "sampler": parse_sampler(sampler)}
    with notes.status(f"loading {model}"):
        served = serve_model(
            model, load_config({"model": model, "device": device, "dtype": dtype, "ngrams": ngrams}, {})
        )
    request = one_request(served, prompt, chat, fields, max_tokens=max_tokens, n=n, seed=seed)
    asyncio.run(_run(served, request))
    notes.print(f"seed {request.seed}", style="dim")


def one_request(
    served: ServedModel,
    prompt: str,
    chat: bool,
    fields: dict[str, Any],
    *,
    max_tokens: int | None,
    n: int | None = 1,
    seed: int | None = None,
    trace: int | None = None,
) -> DecodeRequest:
    """The request that the command line describes; what it does not say is as usual for what decodes it, and the seed
    is drawn. Raises ValueError."""
    codec, runner = served.tokenizer, served.runner
    if chat:
        messages = [{"role": "user", "content": prompt}]
        rendered = codec.render_chat(messages, add_generation_prompt=True, continue_final_message=False, options={})
        ids = codec.fast.encode(rendered, add_special_tokens=False).ids
    else:
        ids = codec.encode_plain(prompt)
    if not ids:
        raise ConfigError("the prompt is empty")
    room = runner.max_model_len - len(ids)
    if room < 1:
        raise ConfigError(f"the prompt has {len(ids)} tokens, the model's context is {runner.max_model_len}")
    chain = resolve(fields, runner.vocab_size, runner.facts)
    program = None if chain.program is None else PROGRAMS.get(chain.program.name)
    if program is not None:
        n, max_tokens = n or program.default_n, max_tokens or program.default_max_tokens
    n, max_tokens = n or 1, min(max_tokens or MAX_TOKENS, room)
    if program is not None:
        if trace is not None:
            raise ConfigError(
                f"'{program.name}' is a program: only what draws one token after the other can be explained"
            )
        program.check(chain.program.values, setting(chain, n, max_tokens, 0, runner.facts))
    return DecodeRequest(
        id="generate",
        prompt_ids=tuple(ids),
        chain=chain,
        seed=secrets.randbits(63) if seed is None else seed,
        max_tokens=max_tokens,
        n=n,
        eos_token_ids=served.eos_token_ids,
        trace=trace,
    )


def check_seed(seed: int | None) -> None:
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise ConfigError(f"--seed must fit into 64 bits with a sign, got {seed}")


def parse_sampler(text: str | None) -> Any:
    """What --sampler says, as a request would."""
    if text is None:
        return None
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--sampler is not valid JSON: {error}") from None


async def _run(served: ServedModel, request: DecodeRequest) -> None:
    try:
        await _print_choices(served, request)
    finally:  # whoever reads may have gone; the engine thread must not outlive the interpreter
        await served.runner.close(0.5)


async def _print_choices(served: ServedModel, request: DecodeRequest) -> None:
    detokenizers = [served.tokenizer.detokenizer() for _ in range(request.n)]
    texts = [""] * request.n
    async for output in served.runner.submit(request):
        for choice, delta in output.deltas.items():
            if delta.finish is not None and delta.finish.reason is FinishReason.ERROR:
                raise ValueError(delta.finish.message)
            ended = delta.finish is not None and delta.finish.stop_token_id is not None
            tokens = delta.token_ids[:-1] if ended else delta.token_ids
            new = "".join(detokenizers[choice].feed(token) for token in tokens)
            if delta.finish is not None:
                new += detokenizers[choice].finish()
            texts[choice] += new
            if choice == 0:
                sys.stdout.write(new)
                sys.stdout.flush()
        texts = texts[: len(texts) - output.absent]
    for text in texts[1:]:
        sys.stdout.write(f"\n---\n{text}")
    sys.stdout.write("\n")
