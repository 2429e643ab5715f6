"""`bench runners` compares equal engines: vLLM's server and ours over vLLM come to the same arguments."""

from __future__ import annotations

import pytest

from bench.runner_ways import CONTEXT, KV_BYTES, our_arguments, torch_arguments, vllm_arguments
from engine.runners.vllm.arguments import engine_arguments
from models.embedded import locate
from server.config import ServeConfig, load_config
from server.runners import engine_settings
from tests.vllm.engine_process import INSTALLED

DIFFERENCES = {  # what our runner decides, and what only the other needs
    "max_logprobs",
    "mm_device_do_normalize",  # of images
    "scheduling_policy",
    "served_model_name",
    "skip_tokenizer_init",
}


def parsed(arguments: list[str]) -> ServeConfig:
    """Our flags as settings; every flag has one value."""
    flags = {
        name.removeprefix("--").replace("-", "_"): value for name, value in zip(*[iter(arguments)] * 2, strict=True)
    }
    return load_config(flags, {})


def test_our_arguments_are_settings() -> None:
    ours, torch = parsed(our_arguments()), parsed(torch_arguments(2))
    assert (ours.runner, torch.runner) == ("vllm", "torch") and torch.threads == 2
    assert ours.max_model_len == torch.max_model_len == CONTEXT and ours.kv_bytes == torch.kv_bytes == KV_BYTES


@pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")
def test_both_engines_have_the_same_arguments() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    theirs = vars(AsyncEngineArgs.from_cli_args(make_arg_parser(FlexibleArgumentParser()).parse_args(vllm_arguments())))
    config = parsed(our_arguments())
    ours = vars(AsyncEngineArgs(**engine_arguments(locate(config.model), engine_settings(config), config.vllm_args)))
    # the parser says None, False or "" for what nobody has asked for
    assert {name for name in theirs if (theirs[name] or None) != (ours[name] or None)} == DIFFERENCES
    assert (ours["max_model_len"], ours["kv_cache_memory_bytes"], ours["dtype"]) == (CONTEXT, KV_BYTES, "float32")
