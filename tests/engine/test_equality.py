"""Logits of the paged engine equal the model's own eager forward, whatever the step looks like."""

from __future__ import annotations

import pytest
import torch

from engine.runners.torch.packing import Chunk
from tests.engine.driver import Driver, Line, ancestors, path
from tests.engine.tiny_models import FAMILIES, VOCABULARY, tiny_model

TOLERANCE = 1e-4


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return tiny_model(request.param)


@pytest.fixture(scope="module", params=["cpu", "replay", "script", "blocks", "gather", "plain"])
def driver(model: torch.nn.Module, request: pytest.FixtureRequest) -> Driver:
    return Driver(model, request.param)


def assert_equal(driver: Driver, line: Line, logits: torch.Tensor) -> None:
    """The last rows computed for `line` equal eager logits of its computed tokens."""
    expected = driver.eager(line.tokens[: line.computed])[-len(logits) :]
    assert (logits - expected).abs().max() <= TOLERANCE
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_logits_are_large_enough_to_mean_something(driver: Driver) -> None:
    assert driver.eager(tokens(20, 0)).abs().max() > 1


@pytest.mark.parametrize("chunk", [1, 3, 7, 23])
def test_prefill_in_chunks(driver: Driver, chunk: int) -> None:
    line = driver.line(tokens(23, 1))
    while line.computed < len(line.tokens):
        out = driver.step((line, min(chunk, len(line.tokens) - line.computed)))
        assert_equal(driver, line, out[line])


def test_decode_of_several_sequences_at_different_lengths(driver: Driver) -> None:
    lines = [driver.line(tokens(n, n)) for n in (5, 9, 17, 6)]
    driver.step(*[(line, len(line.tokens)) for line in lines])
    for t in range(6):
        for line in lines:
            line.tokens.append(tokens(1, 100 * t + len(line.tokens))[0])
        out = driver.step(*[(line, 1) for line in lines])
        for line in lines:
            assert_equal(driver, line, out[line])


def test_mixed_batch_of_chunks_and_decodes(driver: Driver) -> None:
    first, second, third = (driver.line(tokens(n, n)) for n in (8, 21, 12))
    driver.step((first, 7), (third, 5))
    out = driver.step((first, 1), (second, 9), (third, 3))
    for line in (first, second, third):
        assert_equal(driver, line, out[line])
    first.tokens.append(7)
    out = driver.step((second, 12), (first, 1), (third, 4))
    for line in (first, second, third):
        assert_equal(driver, line, out[line])


def test_forks_share_a_prefix_and_diverge(driver: Driver) -> None:
    trunk = driver.line(tokens(14, 5))
    driver.step((trunk, 14))
    lines = [trunk, driver.fork(trunk), driver.fork(trunk)]
    other = driver.line(tokens(4, 6))
    driver.step((other, 4))
    for t in range(5):
        for i, line in enumerate([*lines, other]):
            line.tokens.append(tokens(1, 31 * t + i)[0])
        out = driver.step(*[(line, 1) for line in [*lines, other]])
        for line in [*lines, other]:
            assert_equal(driver, line, out[line])


def test_prompt_chunks_over_a_shared_prefix(driver: Driver) -> None:
    trunk = driver.line(tokens(12, 8))
    driver.step((trunk, 12))
    lines = [trunk, driver.fork(trunk)]
    for i, line in enumerate(lines):
        line.tokens += tokens(5 + i, 50 + i)
    out = driver.step((lines[0], 5), (lines[1], 6))
    for line in lines:
        assert_equal(driver, line, out[line])


def test_chains_of_choices_and_others_beside_a_tree_and_a_single_row(driver: Driver) -> None:
    """Steps of speculating sequences: five rows each, of which some are taken back."""
    trunk = driver.line(tokens(14, 61))
    driver.step((trunk, 14))
    choices = [trunk, driver.fork(trunk), driver.fork(trunk)]
    other, single, planted = (driver.line(tokens(n, n)) for n in (9, 21, 6))
    driver.step((other, 9), (single, 21), (planted, 6))
    parents = [-1, 0, 0, 1, 2]
    for t in range(4):
        for i, line in enumerate([*choices, other, single]):
            line.tokens += tokens(1 if line is single else 5, 70 + 10 * t + i)
        for line in [*choices, other, single]:
            driver.pages.append(line.branch, len(line.tokens) - line.computed)
        driver.pages.append(planted.branch, len(parents))
        drafts = tokens(len(parents), 90 + t)
        chunks = [
            (line, Chunk(line.branch, line.computed, line.tokens[line.computed :]))
            for line in [*choices, other, single]
        ]
        out = driver.run([*chunks, (planted, Chunk(planted.branch, planted.computed, drafts, *ancestors(parents)))])
        for line in [*choices, other, single]:
            line.computed = len(line.tokens)
            assert_equal(driver, line, out[line])
        for row, given in enumerate(out[planted]):
            expected = driver.eager(planted.tokens + [drafts[i] for i in path(parents, row)])[-1]
            assert (given - expected).abs().max() <= TOLERANCE
        driver.compact(planted, drafts, path(parents, 4))
        for i, line in enumerate([*choices, other]):
            driver.truncate(line, len(line.tokens) - (t + i) % 5)


def test_truncate_then_go_on(driver: Driver) -> None:
    line = driver.line(tokens(18, 9))
    driver.step((line, 18))
    driver.truncate(line, 10)
    line.tokens += tokens(6, 10)
    assert_equal(driver, line, driver.step((line, 6))[line])
    line.tokens.append(5)
    assert_equal(driver, line, driver.step((line, 1))[line])


def test_tree_with_repeated_depths_compaction_and_decode(driver: Driver) -> None:
    line = driver.line(tokens(11, 11))
    driver.step((line, 10))
    drafts = [line.tokens[10], *tokens(7, 12)]
    parents = [-1, 0, 0, 1, 1, 2, 3, 5]
    logits = driver.tree(line, drafts, parents)
    for row in range(len(drafts)):
        expected = driver.eager(line.tokens[:10] + [drafts[i] for i in path(parents, row)])[-1]
        assert (logits[row] - expected).abs().max() <= TOLERANCE
    driver.compact(line, drafts, path(parents, 7))
    line.tokens.append(9)
    assert_equal(driver, line, driver.step((line, 1))[line])


def test_trees_that_grow_level_by_level(driver: Driver) -> None:
    """Two trees of several runs of slots, the second a step later; a level sees its ancestors of earlier steps."""
    trunk = driver.line(tokens(14, 14))
    driver.step((trunk, 14))
    lines = [trunk, driver.fork(trunk)]
    drafts = {line: tokens(9, 15 + i) for i, line in enumerate(lines)}
    parents = [-1, 0, 0, 1, 2, 2, 3, 5, 5]
    levels = [0, 1, 3, 6, 9]
    for t in range(len(levels)):
        grown = {line: i for line, i in zip(lines, (t, t - 1), strict=True) if 0 <= i < len(levels) - 1}
        shares = [
            (line, drafts[line][: levels[i + 1]], parents[: levels[i + 1]], levels[i]) for line, i in grown.items()
        ]
        for line, logits in driver.trees(*shares).items():
            for row, given in enumerate(logits, levels[grown[line]]):
                expected = driver.eager(line.tokens + [drafts[line][i] for i in path(parents, row)])[-1]
                assert (given - expected).abs().max() <= TOLERANCE
    driver.compact(trunk, drafts[trunk], path(parents, 8))
    trunk.tokens.append(9)
    assert_equal(driver, trunk, driver.step((trunk, 1))[trunk])


def test_tree_beside_decodes_and_inside_a_group(driver: Driver) -> None:
    trunk = driver.line(tokens(12, 13))
    driver.step((trunk, 12))
    sibling = driver.fork(trunk)
    trunk.tokens.append(4)
    sibling.tokens.append(6)
    out = driver.step((trunk, 1), (sibling, 1))
    assert_equal(driver, sibling, out[sibling])
    logits = driver.tree(trunk, [8, 9, 10], [-1, 0, 0])
    for row, chosen in enumerate(([8], [8, 9], [8, 10])):
        expected = driver.eager(trunk.tokens + chosen)[-1]
        assert (logits[row] - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "phi3"])
def test_dense_models_are_replayed_and_scripted(kind: str) -> None:
    driver = Driver(tiny_model(kind), "script")
    assert driver.forward.program is not None and driver.forward.program.script is not None
