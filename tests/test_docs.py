"""Keeps the documents true: settings, names, paths and examples are compared with the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

import samplers  # noqa: F401  registers the stages and draws
from engine.runners.base import Stats
from samplers.chain import INTERNAL
from samplers.programs.contract import PROGRAMS
from samplers.registry import DRAWS, STAGES
from samplers.testing.program_world import decode
from server import config
from server.cli import STARTUP_EXIT
from server.launch import FATAL_EXIT
from server.metrics import Metrics
from server.presets import NOT_PRESETTABLE, check_presets
from server.refusals import HANDLED
from server.schema.chat import ChatBody
from server.schema.completions import CompletionBody
from server.text.codec import TextCodec
from spec_decode.contract import VERIFIERS
from spec_decode.drafters import PromptLookup, Suffix
from spec_decode.facts import SpecFacts, SpecOffer
from spec_decode.read import read_spec
from spec_decode.request import SpecRequest, TreeShape
from spec_decode.statistics import SpecStatistics

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LINE_LENGTH = 120


def read(name: str) -> str:
    return (ROOT / name).read_text()


def fenced(text: str, language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for of, block in blocks if of == language]


def code_spans(text: str) -> set[str]:
    """Everything in backticks outside of fenced blocks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)))


def table(text: str, title: str) -> dict[str, str]:
    """First and second column, without backticks, of the table under a heading."""
    part = re.split(r"^## ", text, flags=re.MULTILINE)
    rows = next(section for section in part if section.startswith(title))
    cells = [line.split("|")[1:3] for line in rows.splitlines() if line.startswith("| `")]
    return {name.strip(" `"): value.strip(" `") for name, value in cells}


def as_written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def modules() -> list[str]:
    """Paths of our own Python files."""
    folders = ("server", "engine", "samplers", "spec_decode", "voting", "models", "bench", "tests")
    return [str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py")]


# --- configuration


def test_every_setting_is_documented_with_its_default() -> None:
    defaults = config.ServeConfig().model_dump()
    documented = table(read("docs/configuration.md"), "Settings")
    assert documented == {name: as_written(value) for name, value in defaults.items()}


def test_exit_codes_and_preset_exceptions_are_documented() -> None:
    text = read("docs/configuration.md")
    assert f"| {STARTUP_EXIT} |" in text
    assert f"| {FATAL_EXIT} |" in text
    assert code_spans(text) >= NOT_PRESETTABLE


def test_the_example_file_loads_and_its_presets_are_usable() -> None:
    loaded = config.load_config({}, {}, ROOT / "drafthouse.example.yaml")
    assert len(loaded.presets) == 2
    check_presets(loaded.presets, cast(TextCodec, None), 4096, 2048)  # no preset needs the tokenizer
    defaults = config.ServeConfig()
    assert loaded.model_copy(update={"presets": {}}) == defaults


def test_settings_commented_out_in_the_example_file_exist() -> None:
    named = re.findall(r"^# (\w+): ", read("drafthouse.example.yaml"), re.MULTILINE)
    assert set(named) <= config.ServeConfig.model_fields.keys()


def test_yaml_in_the_documents_loads(tmp_path: Path) -> None:
    blocks = [block for path in DOCUMENTS for block in fenced(path.read_text(), "yaml")]
    assert blocks
    for block in blocks:
        file = tmp_path / "config.yaml"
        file.write_text(block)
        check_presets(config.load_config({}, {}, file).presets, cast(TextCodec, None), 4096, 2048)


# --- README


def tree_paths() -> list[Path]:
    """The paths of the annotated tree, indentation giving the parent."""
    block = next(b for b in fenced(read("README.md"), "") if "server/ " in b)
    parents: list[str] = []
    paths = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        while depth < len(parents):
            parents.pop()
        parents.append(line.split()[0])
        paths.append(ROOT.joinpath(*parents))
    return paths


def test_every_path_of_the_tree_exists() -> None:
    paths = tree_paths()
    assert len(paths) > 10
    assert [str(path) for path in paths if not path.exists()] == []


def test_every_package_is_in_the_tree() -> None:
    packages = {path.parent for path in ROOT.glob("*/__init__.py")}
    assert packages <= set(tree_paths())


def test_python_blocks_compile() -> None:
    blocks = fenced(read("README.md"), "python")
    assert len(blocks) >= 2
    for block in blocks:
        compile(block, "README.md", "exec")


def test_readme_opens_with_the_two_commands() -> None:
    first = fenced(read("README.md"), "sh")[0].split("\n")
    assert first[0].startswith("make serve")
    assert first[1].startswith("make test")
    targets = re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE)
    assert {"serve", "test", "bench"} <= set(targets)


# --- API


def test_samplers_are_documented() -> None:
    spans = code_spans(read("docs/api.md"))
    public = {stage.name for stage in STAGES} - INTERNAL
    assert public | {draw.name for draw in DRAWS} <= spans


def test_sampler_table_states_ranges_and_defaults() -> None:
    """A sampler's first parameter is in its row, the others have rows of their own below it: `| | `name` ... |`."""
    lines = read("docs/api.md").splitlines()
    rows = {row.split("|")[1].strip(" `"): row for row in lines if row.startswith("| `")}
    more = {row.split("`")[1]: row for row in lines if row.startswith("| | `")}
    for owner in (*STAGES, *DRAWS):
        for number, param in enumerate(owner.params):
            value = param.when_named
            default = str(value).lower() if isinstance(value, (bool, str)) else f"{value:g}"
            row = more[param.name] if number else rows[owner.name]
            cells = [cell.strip(" `") for cell in row.split("|")]
            assert any(cell == default or _number(cell) == value for cell in cells[3:]), f"{param.name}: {default}"


def test_parameters_of_programs_are_documented() -> None:
    """Each program has a section with a row per parameter: name, values, default."""
    parts = re.split(r"^##+ ", read("docs/api.md"), flags=re.MULTILINE)
    sections = {part.split("`")[1]: part for part in parts if part.startswith("`")}
    assert set(sections) == {program.name for program in PROGRAMS}
    for program in PROGRAMS:
        cells = [line.split("|")[1:4] for line in sections[program.name].splitlines() if line.startswith("| `")]
        rows = {name.strip(" `"): (values, default.strip(" `")) for name, values, default in cells}
        assert set(rows) == {*(param.name for param in program.params), *program.structured}, program.name
        for param in program.params:
            values, default = rows[param.name]
            value = param.when_named
            assert default == str(value).lower() or _number(default) == value, param.name
            limits = [limit for limit in (param.low, param.high) if abs(limit) < 2**31 - 1]
            assert all(re.search(rf"(?<![\d.]){limit:g}(?![\d.])", values) for limit in limits), param.name
            assert all(f"`{choice}`" in values for choice in param.choices), param.name


def test_what_programs_say_is_documented() -> None:
    spans = code_spans(read("docs/api.md"))
    for program in PROGRAMS:
        values = {"event": {"min_len": 1}} if "event" in program.structured else {}
        outcome = decode(program, lambda _: [0.0, 0.5, 1.0], n=2, max_tokens=2, values=values)
        assert outcome.choices
        assert {*outcome.report, *(name for one in outcome.choices.values() for name in one.details)} <= spans


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def test_refused_and_extra_fields_are_documented() -> None:
    spans = code_spans(read("docs/api.md"))
    assert set(HANDLED) <= spans
    openai = {
        "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n",
        "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop", "stream", "stream_options", "user",
        "logprobs", "top_logprobs",
    }  # fmt: skip
    assert (ChatBody.model_fields.keys() | CompletionBody.model_fields.keys()) - openai <= spans


def test_speculation_is_documented() -> None:
    spans = code_spans(read("docs/speculation.md"))
    offer = SpecOffer((Suffix(), PromptLookup()))
    found = read_spec({"stats": "detailed"}, SpecFacts(offer))
    assert isinstance(found, SpecRequest)
    results = SpecStatistics().report("detailed").keys() | {"lossy", "seed_stable", "fallback_reason"}
    keys = {*found.report(), *TreeShape.__dataclass_fields__, *results}
    options = {param.name for source in offer.sources for param in source.params}
    assert keys | options | {verifier.name for verifier in VERIFIERS} <= spans


def test_metrics_are_documented() -> None:
    class Runner:
        def stats(self) -> Stats:
            return Stats(step_seconds={"forward": 0.0})

    metrics = Metrics({"model": cast(Any, Runner())})
    metrics.http.labels("/", "200").inc()
    spans = code_spans(read("docs/api.md"))
    for family in text_string_to_metric_families(metrics.render().decode()):
        if not family.name.endswith("_created"):
            name = family.name + "_total" * (family.type == "counter")
            assert name in spans


# --- all documents


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_in_text_exist(path: Path) -> None:
    named = {span for span in code_spans(path.read_text()) if re.fullmatch(r"[\w./-]+\.py", span)}
    known = modules()
    assert [name for name in named if not any(f"/{module}".endswith(f"/{name}") for module in known)] == []


def test_every_module_has_its_line() -> None:
    text = read("docs/architecture.md")
    spans = code_spans(text[text.index("## Modules") :])
    inner = ("server/routes/", "server/schema/", "server/answers/", "server/text/")  # one line per folder
    own = [module for module in modules() if not module.startswith((*inner, "tests/")) and "__init__" not in module]
    assert [module for module in own if Path(module).name not in spans and module.partition("/")[2] not in spans] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_lines_are_short(path: Path) -> None:
    prose = [line for line in path.read_text().splitlines() if not line.startswith("|")]
    assert [line for line in prose if len(line) > LINE_LENGTH] == []
