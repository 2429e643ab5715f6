"""`drafthouse explain`: one generation without a server, with what each stage of its chain did to every token.

Collects; `explain_table.py` and `explain_page.py` show it.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.request import DecodeRequest, FinishReason
from samplers.trace import TokenTrace
from server.config import ConfigError, load_config
from server.explain_page import page
from server.explain_table import print_opening, print_token
from server.generate_once import check_seed, one_request, parse_sampler
from server.launch import serve_model
from server.state import ServedModel
from server.text.codec import TextCodec

SPACES = re.compile(" {4,}")  # indentation differs by how many there are, which nobody can see


@dataclass(frozen=True)
class Setting:
    """What was run."""

    model: str
    prompt: str
    sampler: list[dict[str, Any]]  # resolved, in executed order
    seed: int
    names: Mapping[int, str]  # of every token that a trace mentions, quoted; grows with the traces


def explain(
    prompt: str,
    model: str,
    chat: bool,
    sampler: str | None,
    temperature: float | None,
    max_tokens: int,
    seed: int | None,
    top: int,
    html: Path | None,
    device: str | None,
    dtype: str | None,
) -> None:
    """Print a table per token, and write the page. Raises OSError or ValueError for what cannot be loaded or done."""
    check_seed(seed)
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise ConfigError(f"--html: cannot write {html}: it is a folder, or in a folder that does not exist")
    fields = {"temperature": temperature, "sampler": parse_sampler(sampler)}
    if isinstance(sys.stdout, io.TextIOWrapper):  # a token may have any character, a terminal need not
        sys.stdout.reconfigure(errors="backslashreplace")
    out, notes = Console(highlight=False), Console(stderr=True)
    with notes.status(f"loading {model}"):
        served = serve_model(model, load_config({"model": model, "device": device, "dtype": dtype}, {}))
    request = one_request(served, prompt, chat, fields, max_tokens=max_tokens, seed=seed, trace=top)
    names: dict[int, str] = {}
    setting = Setting(served.id, prompt, request.chain.report(), request.seed, names)
    traces: list[TokenTrace] = []

    async def show() -> None:
        try:
            print_opening(out, setting)
            async for trace in _traces(served, request):
                names.update((token, quoted(served.tokenizer, token)) for token in _mentioned(trace))
                traces.append(trace)
                print_token(out, setting, len(traces), trace)
        finally:  # whoever reads may have gone; the engine thread must not outlive the interpreter
            await served.runner.close(0.5)

    asyncio.run(show())
    out.print(served.tokenizer.decode([trace.token for trace in traces]), markup=False, soft_wrap=True)
    notes.print(f"seed {request.seed}", style="dim")
    if html is not None:
        try:
            html.write_text(page(setting, traces), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--html: cannot write {html}: {error.strerror}") from None
        notes.print(f"wrote {html}", style="dim", markup=False, soft_wrap=True)


def quoted(codec: TextCodec, token: int) -> str:
    """A token as people can tell it from others: spaces and line ends visible, parts of characters as bytes."""
    data = codec.token_bytes(token)
    if not data:
        return f"<{token}>"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"<{data.hex(' ').upper()}>"
    return SPACES.sub(lambda run: f"<{len(run[0])} spaces>", repr(text))


def _mentioned(trace: TokenTrace) -> set[int]:
    return {trace.token, *(token for token, _ in trace.candidates)}


async def _traces(served: ServedModel, request: DecodeRequest) -> AsyncIterator[TokenTrace]:
    async for output in served.runner.submit(request):
        for delta in output.deltas.values():
            for trace in delta.traces:
                assert trace is not None  # nothing speculates here
                yield trace
            if delta.finish is not None and delta.finish.reason is FinishReason.ERROR:
                raise ConfigError(delta.finish.message)
