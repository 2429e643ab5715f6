"""Models in bf16 on CPU: the replayed forward pass serves them, and rounds as the model's own does."""

from __future__ import annotations

import pytest
import torch

from tests.engine.driver import Driver
from tests.engine.tiny_models import VOCABULARY, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")
ROUNDINGS = 4 * torch.finfo(torch.bfloat16).eps


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("way", ["replay", "script"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_bf16_is_replayed_and_gives_the_eager_logits(kind: str, way: str) -> None:
    model = tiny_model(kind).bfloat16()
    eager, replayed = Driver(model), Driver(model, way)
    assert replayed.forward.program is not None
    prompts = [tokens(11, 1), tokens(9, 2), tokens(16, 3)]
    lines = [[driver.line(prompt) for prompt in prompts] for driver in (eager, replayed)]
    for share in (5, 2, 1, 1):
        expected, given = (
            driver.step(*[(line, share) for line in own]) for driver, own in zip((eager, replayed), lines, strict=True)
        )
        for one, other in zip(*lines, strict=True):
            assert given[other].dtype == torch.bfloat16
            assert (given[other] - expected[one]).abs().max() <= ROUNDINGS * expected[one].abs().max()


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_a_model_that_cannot_be_traced_says_so_in_one_line(
    kind: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    driver = Driver(tiny_model(kind), "script")
    assert driver.forward.program is None
    assert [record.name for record in caplog.records if record.levelname != "DEBUG"] == ["engine.runners.torch.forward"]
    assert "fake_tensor" not in capfd.readouterr().err
