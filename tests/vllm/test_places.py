"""Which ways to spread an engine the server knows how to start. The examples of the document need vLLM."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.runners.vllm.arguments import engine_arguments
from engine.runners.vllm.places import check_places
from engine.settings import EngineSettings, SettingsError
from models.embedded import locate
from server.config import ConfigError, ServeConfig, load_config
from server.runners import check_runner_settings, engine_settings
from tests.vllm.engine_process import INSTALLED

DOCUMENT = Path(__file__).parents[2] / "docs" / "scale-out.md"
LOCAL = "127.0.0.1"
SECOND = {"data_parallel_size_local": 2, "data_parallel_start_rank": 2}  # machine of two, with replicas


@pytest.mark.parametrize(
    ("given", "headless", "message"),
    [
        ({"nnodes": 2, "node_rank": 1}, False, "serves no HTTP: add --headless"),
        ({"nnodes": 2, "node_rank": 0}, True, "say which machine this is"),
        ({}, True, "say which machine this is"),
        ({"node_rank": 1}, True, "'node_rank' needs 'nnodes'"),
        ({"data_parallel_start_rank": 1}, True, "'data_parallel_start_rank' needs 'data_parallel_size_local'"),
        ({"nnodes": 2, "node_rank": 1, "distributed_executor_backend": "ray"}, True, "Ray starts"),
        (SECOND | {"data_parallel_backend": "ray"}, True, "Ray starts"),
        ({"data_parallel_multi_port_external_lb": True}, False, "for vLLM's own server"),
        ({"distributed_executor_backend": "external_launcher"}, False, "nothing is left"),
        ({"nnodes": 2, "data_parallel_rank": 0}, False, "'data_parallel_rank' gives every machine a server"),
        ({"nnodes": 2, "data_parallel_hybrid_lb": True}, False, "'data_parallel_hybrid_lb' gives every machine"),
    ],
)
def test_what_cannot_be_started_is_refused(given: dict[str, Any], headless: bool, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_places(given, headless)


@pytest.mark.parametrize(
    ("given", "headless"),
    [
        ({}, False),
        ({"nnodes": 2, "node_rank": 0}, False),
        ({"nnodes": 2, "node_rank": 1}, True),
        (SECOND, True),
        (SECOND | {"data_parallel_hybrid_lb": True}, False),
        ({"distributed_executor_backend": "ray"}, False),
    ],
)
def test_what_can_be_started_is_not(given: dict[str, Any], headless: bool) -> None:
    check_places(given, headless)


def test_only_vllm_has_machines_without_http() -> None:
    with pytest.raises(ConfigError, match="'headless' belongs to the vllm runner"):
        check_runner_settings(ServeConfig(headless=True))


def examples() -> list[Any]:
    """The configuration files of the document, under the headings they stand below."""
    found, heading = [], ""
    for part in re.findall(r"^##+ (.*?)$|^```yaml\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL):
        heading = part[0] or heading
        if part[1]:
            found.append(pytest.param(part[1], id=heading))
    return found


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with experts that is nothing but a configuration."""
    folder = tmp_path_factory.mktemp("experts")
    tiny = json.loads((Path(locate("drafthouse-tiny")) / "config.json").read_text())
    sizes = {name: tiny[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "num_local_experts": 4}
    kind = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(kind | sizes | heads))
    return str(folder)


@pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")
@pytest.mark.parametrize("text", examples())
def test_vllm_accepts_the_examples_of_the_document(text: str, experts: str, tmp_path: Path) -> None:
    """Its own configuration is built, with a small model and addresses of this machine."""
    from engine.runners.vllm.places import reports_address
    from engine.runners.vllm.start import configured

    file = tmp_path / "config.yaml"
    file.write_text(text)
    config = load_config({}, {}, file)
    check_runner_settings(config)
    given = {name: LOCAL if "addr" in name else value for name, value in config.vllm_args.items()}
    built = configured(engine_arguments(experts, engine_settings(config), given), config.headless)
    parallel = built.parallel_config
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "nnodes", "node_rank"):
        assert getattr(parallel, name) == given.get(name, getattr(type(parallel), name))
    elsewhere = reports_address(built)
    if "ray" in yaml.safe_dump(given):
        assert elsewhere is not None and elsewhere[1] == 0
    elif {"nnodes", "data_parallel_size_local"} & given.keys() and "data_parallel_hybrid_lb" not in given:
        assert elsewhere == (LOCAL, 29551)
    else:
        assert elsewhere is None


@pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")
def test_stages_on_the_cpu_need_what_no_replay_leaves_out() -> None:
    """vLLM would start, and die of the first request."""
    from engine.runners.vllm.start import configured

    settings = EngineSettings(replay=False)
    with pytest.raises(SettingsError, match="'replay': vLLM's CPU build"):
        configured(engine_arguments(locate("drafthouse-tiny"), settings, {"pipeline_parallel_size": 2}))
