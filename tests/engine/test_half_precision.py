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
    prompts = [tokens(11, 1), tokens(7, 2), tokens(16, 3)]
    lines = [[driver.line(prompt) for prompt in prompts] for driver in (eager, replayed)]
    for share in (5, 2, 1, 1):
        expected, given = (
            driver.step(*[(line, share) for line in own]) for driver, own in zip((eager, replayed), lines, strict=True)
        )
        for one, other in zip(*lines, strict=True):
            assert given[other].dtype == torch.bfloat16
            assert (given[other] - expected[one]).abs().max() <= ROUNDINGS * expected[one].abs().max()
