"""`drafthouse explain`: what it prints, the page it writes, and what it says when it cannot."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from samplers.trace import Candidate, DrawTrace, StageTrace, TokenTrace
from server.cli import STARTUP_EXIT, app
from server.explain import Setting, quoted
from server.explain_page import page
from server.explain_table import percent, print_opening, print_token
from server.text.codec import TextCodec
from tests.server.live import TINY

VOID = {"meta", "br"}
NAMES = {1: "'<script>alert(1)</script>'", 2: "' & \"x\"'", 3: "'\\n'", 4: "<E2 80>"}


def trace(token: int = 1, stages: int = 1, draw: DrawTrace | None = None) -> TokenTrace:
    def stage(name: str) -> StageTrace:
        candidates = (Candidate(1, 0.5, 0.8), Candidate(2, 0.3, 0.2), Candidate(3, 0.2, 0.0))
        return StageTrace(name, (10, 2), 0.2, (1.5, 0.5), (0.5, 0.8), candidates, (0.25,))

    names = ["min_p", "typical", "repetition_penalty", "xtc", "top_k", "top_p", "epsilon", "eta", "tail_free"]
    model = ((1, 0.5), (2, 0.3), (3, 0.2))
    chosen = draw or DrawTrace("iid", (0.4,), (0.0, 0.8))
    return TokenTrace(token, 0.5, 10, 1.5, model, tuple(stage(name) for name in names[:stages]), chosen)


def setting() -> Setting:
    sampler: list[dict[str, Any]] = [{"name": "min_p", "min_p": 0.1}, {"name": "iid"}]
    return Setting("tiny", "</code><b>prompt & %%", sampler, 7, NAMES)


class Tree(HTMLParser):
    """Checks that every element is closed where it should be, and keeps texts and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.elements: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parse(text: str) -> Tree:
    tree = Tree()
    tree.feed(text)
    tree.close()
    assert tree.open == []
    return tree


def test_the_page_is_well_formed_and_escapes() -> None:
    tree = parse(page(setting(), [trace(), trace(4), trace(2, 0, DrawTrace("greedy"))]))
    assert tree.elements.count("script") == tree.elements.count("style") == 1
    assert tree.elements.count("section") == 3
    for name in NAMES.values():
        assert name in tree.texts
    assert "</code><b>prompt & %%" in tree.texts


def test_the_page_needs_nothing_else() -> None:
    text = page(setting(), [trace()])
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    tree = parse(text)
    assert {name for name, _ in tree.attributes}.isdisjoint({"src", "srcset", "onclick"})
    assert all(value and value.startswith("#") for name, value in tree.attributes if name == "href")
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text and "viewport" in text


def test_bars_are_as_long_as_probabilities() -> None:
    text = page(setting(), [trace()])
    assert 'class="was" style="width:50.00%"></i><i class="is" style="width:80.00%"' in text
    assert 'class="gone"' in text and "removed" in text
    assert "left:0.000%;width:80.000%" in text and 'class="number" style="left:40.000%"' in text


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("stages", [0, 1, 9])
@pytest.mark.parametrize("token", [1, 4])
def test_tables_fit_and_say_everything(width: int, stages: int, token: int) -> None:
    out = Console(width=width, record=True, file=open("/dev/null", "w"), highlight=False)  # noqa: SIM115
    print_opening(out, setting())
    print_token(out, setting(), 1, trace(token, stages))
    text = out.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "possible" in text and "entropy" in text and "50.0%" in text
    assert NAMES[token][:17] in text and "' & \"x\"'" in text
    assert text.count("removed") >= 1 + stages // 9
    assert "0.400000" in text
    words = re.sub(r"\s+", " ", text)
    assert stages == 0 or "min_p" in words


def test_a_terminal_without_unicode_gets_ascii(tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w", encoding="ascii", errors="strict") as file:
        out = Console(width=80, file=file)
        print_token(out, setting(), 1, trace())
    assert "####" in (tmp_path / "out.txt").read_text()


def test_percentages() -> None:
    shown = [percent(value) for value in (0, 1e-7, 0.005, 0.25, 0.9994, 0.9996, 0.99999, 1.0)]
    assert shown == ["0", "1e-07", "0.50%", "25.0%", "99.9%", ">99.9%", ">99.9%", "100.0%"]


def test_tokens_are_quoted() -> None:
    codec = TextCodec.load(TINY)
    assert quoted(codec, codec.encode_plain(" return")[0]) == "' return'"
    assert quoted(codec, codec.encode_plain("\n       ")[0]) == "'\\n<7 spaces>'"
    part = next(token for token in range(300) if codec.token_bytes(token) == b"\xe2")
    assert quoted(codec, part) == "<E2>"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["explain", *arguments], env={"COLUMNS": "100"})


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--sampler", "{bad"], "--sampler is not valid JSON"),
        (["--seed", str(2**63)], "--seed"),
        (["--html", "/nowhere/at/all.html"], "--html"),
        (["--top", "0"], "--top"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_errors_are_readable(arguments: list[str], said: str) -> None:
    result = run("def", *arguments)
    assert result.exit_code == STARTUP_EXIT
    assert said in result.output and "Traceback" not in result.output


def test_help_teaches() -> None:
    text = run("--help").output
    assert "nats" in text and "min_p" in text and "return_sampler_trace" in text


@pytest.mark.slow
def test_the_embedded_model_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    arguments = ["--max-tokens", "3", "--seed", "7", "--temperature", "0.8", "--top", "3"]
    result = run("def read(<b>):", "--sampler", '{"name": "min_p", "min_p": 0.1}', *arguments, "--html", str(file))
    assert result.exit_code == 0, result.output
    headings = re.findall(r"^(\d)  (.+?)  the model gave it", result.output, re.MULTILINE)
    assert [number for number, _ in headings] == ["1", "2", "3"]
    assert "temperature" in result.output and "min_p" in result.output and "iid: 0." in result.output
    tree = parse(file.read_text())
    assert all(name in tree.texts for _, name in headings)
    unknown = run("def", "--sampler", "nope")
    assert unknown.exit_code == STARTUP_EXIT and "known:" in unknown.output
    assert run("").exit_code == STARTUP_EXIT
