"""The command from start to end: refusals to start, keys, clients that leave, and a stop that loses no answer."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from bench.server_process import metrics
from models.embedded import locate
from tests.acceptance.process import Server, command, environment, running
from tests.acceptance.reference import CODE, MODEL

TEXT = "/v1/completions"
pytestmark = pytest.mark.slow  # most tests start a process of their own
COMMAND_S = 120
RELEASE_S = 10.0
SECOND_SIGNAL_S = 3.0
HELD = ("requests_running", "requests_waiting", "kv_pages_in_use", "slots_in_use")


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": CODE[0], "max_tokens": 4} | fields


def long_stream() -> dict[str, Any]:
    return body(stream=True, max_tokens=1500, ignore_eos=True, return_token_ids=True)


def drafthouse(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        command(*arguments), env=environment(**variables), capture_output=True, text=True, timeout=COMMAND_S
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Status 2 and one readable line that holds all of `words`."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("drafthouse: ")]
    assert len(lines) == 1 and all(word in lines[0] for word in words), done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


def wait_released(url: str) -> None:
    """Until nothing runs, waits or holds memory."""
    deadline = time.monotonic() + RELEASE_S
    while any((now := metrics(url))[f"drafthouse_{name}"] for name in HELD):
        assert time.monotonic() < deadline, {name: now[f"drafthouse_{name}"] for name in HELD}
        time.sleep(0.05)


def test_stop_lets_a_stream_finish(tmp_path: Path) -> None:
    server = Server(tmp_path / "log.txt")
    try:
        server.wait_ready()
        with httpx.stream("POST", server.url + TEXT, json=long_stream(), timeout=60) as response:
            lines = (line for line in response.iter_lines() if line)
            received = [next(lines)]
            server.terminate()
            status = draining_status(server.url)
            received += lines
        assert server.exit_code() == 0 and "Traceback" not in server.output(), server.output()
    finally:
        server.process.kill()
    assert status == 503
    assert received[-1] == "data: [DONE]"
    choices = [choice for line in received[:-1] for choice in json.loads(line[6:])["choices"]]
    assert choices[-1]["finish_reason"] == "length"
    assert sum(len(choice["token_ids"]) for choice in choices) == 1500


def draining_status(url: str) -> int:
    """What a new request gets once the signal has arrived."""
    deadline = time.monotonic() + RELEASE_S
    while httpx.get(f"{url}/health").status_code == 200:
        assert time.monotonic() < deadline, "the signal has no effect"
    response = httpx.post(url + TEXT, json=body())
    assert response.json()["error"]["code"] == "overloaded" and response.headers["retry-after"]
    return response.status_code


def test_second_signal_stops_at_once(tmp_path: Path) -> None:
    server = Server(tmp_path / "log.txt")
    try:
        server.wait_ready()
        with httpx.stream("POST", server.url + TEXT, json=long_stream() | {"n": 16}, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            server.terminate()
            draining_status(server.url)
            server.terminate()
            began = time.monotonic()
            assert server.exit_code() == 0, server.output()
            assert time.monotonic() - began < SECOND_SIGNAL_S
    finally:
        server.process.kill()


def test_requests_out_of_time_end_with_an_error_their_client_can_read(tmp_path: Path) -> None:
    server = Server(tmp_path / "log.txt", "--grace-s", "0.3")
    try:
        server.wait_ready()
        with ThreadPoolExecutor(1) as pool, httpx.Client(timeout=60) as http:
            whole = pool.submit(http.post, server.url + TEXT, json=long_stream() | {"stream": False, "n": 32})
            with http.stream("POST", server.url + TEXT, json=long_stream() | {"n": 16}) as response:
                lines = (line for line in response.iter_lines() if line)
                next(lines)
                server.terminate()
                received = list(lines)
            error = whole.result()
        assert server.exit_code() == 0 and "Traceback" not in server.output(), server.output()
    finally:
        server.process.kill()
    assert received[-1] == "data: [DONE]" and json.loads(received[-2][6:])["error"]["code"] == "overloaded"
    assert error.status_code == 503 and error.json()["error"]["code"] == "overloaded"


def test_a_key_that_is_empty_opens_nothing() -> None:
    refused(drafthouse("serve", "--port", "0", "--api-key", "", DRAFTHOUSE_API_KEY="secret"), "api_key", "empty")
    refused(drafthouse("serve", "--port", "0", DRAFTHOUSE_API_KEY=" , "), "api_key", "empty")


def test_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(drafthouse("serve", "--port", port), port)


def test_unknown_model(tmp_path: Path) -> None:
    refused(drafthouse("serve", "--port", "0", "--model", str(tmp_path / "nowhere")), "nowhere")
    refused(drafthouse("generate", "x", "--model", "no-such-model"), "no-such-model")


def test_folder_without_a_model(tmp_path: Path) -> None:
    refused(drafthouse("serve", "--port", "0", "--model", str(tmp_path)), tmp_path.name)
    (tmp_path / "config.json").write_text("{}")
    refused(drafthouse("serve", "--port", "0", "--model", str(tmp_path)), tmp_path.name)


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["--dtype", "float13"], {}, ["dtype"]), (["--page-size", "48"], {}, ["page_size"]),
        (["--max-seqs", "0"], {}, ["max_seqs"]), ([], {"DRAFTHOUSE_MAX_SEQS": "many"}, ["DRAFTHOUSE_MAX_SEQS"]),
        (["--config", "no-such.yaml"], {}, ["no-such.yaml"]), (["--vllm-arg", "seed=1"], {}, ["vllm_args", "runner"]),
        (["--max-model-len", "1000000"], {}, ["max_model_len"]),
        (["--device", "abacus"], {}, ["abacus"]),
    ],
    ids=str,
)  # fmt: skip
def test_impossible_settings(arguments: list[str], variables: dict[str, str], words: list[str]) -> None:
    refused(drafthouse("serve", "--port", "0", *arguments, **variables), *words)


def test_damaged_weights(tmp_path: Path) -> None:
    folder = shutil.copytree(locate(MODEL), tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(drafthouse("serve", "--port", "0", "--model", str(folder)), "damaged")


def test_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_bytes(b"\xff\xfe")
    refused(drafthouse("serve", "--port", "0", "--config", str(tmp_path / "settings.yaml")), "settings.yaml")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_device_that_is_not_there() -> None:
    refused(drafthouse("serve", "--port", "0", "--device", "cuda"), "cuda")


def test_keys(tmp_path: Path) -> None:
    with running(tmp_path / "log.txt", DRAFTHOUSE_API_KEY="right") as server:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            for response in (
                httpx.post(server.url + TEXT, json=body(), headers=headers),
                httpx.get(f"{server.url}/v1/models", headers=headers),
            ):
                error = response.json()["error"]
                assert response.status_code == 401 and error.keys() == {"message", "type", "param", "code"}
                assert error["code"] == "invalid_api_key" and error["type"] == "authentication_error"
        headers = {"authorization": "Bearer right"}
        assert httpx.post(server.url + TEXT, json=body(), headers=headers).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert "right" not in server.output()


@pytest.mark.parametrize("chunks", [0, 1, 5])
def test_client_leaves_a_stream(server: str, chunks: int) -> None:
    with httpx.stream("POST", server + TEXT, json=long_stream() | {"n": 3}, timeout=60) as response:
        lines = (line for line in response.iter_lines() if line)
        for _ in range(chunks):
            next(lines)
        assert chunks == 0 or metrics(server)["drafthouse_requests_running"] >= 1
    wait_released(server)


def test_client_leaves_before_an_answer(server: str) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server + TEXT, json=long_stream() | {"stream": False}, timeout=0.3)
    wait_released(server)


def test_models_command() -> None:
    done = drafthouse("models")
    assert done.returncode == 0, done.stderr
    assert MODEL in done.stdout and f"{MODEL}-draft" in done.stdout and "M parameters" in done.stdout


def test_generate_command() -> None:
    done = drafthouse("generate", "def f(x):", "--max-tokens", "8")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert "seed" in done.stderr and "Traceback" not in done.stderr


def test_generate_command_equals_the_server(http: httpx.Client) -> None:
    done = drafthouse("generate", "def f(x):", "--max-tokens", "8", "-n", "2", "--seed", "3")
    answer = http.post(TEXT, json=body(prompt="def f(x):", max_tokens=8, n=2, seed=3, temperature=1)).json()
    first, second = (choice["text"] for choice in answer["choices"])
    assert done.returncode == 0 and done.stdout == f"{first}\n---\n{second}\n", done.stderr


def test_generate_command_refuses() -> None:
    refused(drafthouse("generate", "x", "--sampler", "typo"), "typo")


def test_generate_command_refuses_a_huge_seed() -> None:
    refused(drafthouse("generate", "x", "--max-tokens", "4", "--seed", str(2**70)), "seed")


def test_help_names_every_command() -> None:
    done = drafthouse("--help")
    assert done.returncode == 0 and all(name in done.stdout for name in ("serve", "generate", "models", "bench"))
