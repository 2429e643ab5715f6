"""Spare rows of the embedding table: mixtures are what they say, and nothing else notices them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from engine.runners.base import Capability
from engine.runners.torch.loader import check
from engine.runners.torch.mixed_embeddings import add_spare_rows
from engine.runners.torch.runner import TorchRunner
from engine.settings import EngineSettings
from samplers.programs.branch import Mixture
from tests.engine.tiny_models import VOCABULARY, tiny_model

IDS = torch.tensor([[5, 9, 2, 40, 63]])
MIXTURES = [Mixture((5, 9, 40), (0.5, 0.25, 0.25)), Mixture((7,), (1.0,)), Mixture((3, 3), (0.9, 0.1))]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_mixture_is_the_weighted_sum_and_the_logits_stay_as_they_were(kind: str, tied: bool) -> None:
    model = tiny_model(kind, tie_word_embeddings=tied)
    if tied:
        model.tie_weights()
    with torch.inference_mode():
        before, table = model(input_ids=IDS).logits, model.get_input_embeddings().weight.clone()
        mixtures = add_spare_rows(model, 4)
        assert mixtures is not None
        assert torch.equal(model(input_ids=IDS).logits, before)
        assert model.get_output_embeddings().weight.shape[0] == VOCABULARY
        look_up = model.get_input_embeddings()
        given = mixtures.place(MIXTURES)
        assert min(given) >= VOCABULARY
        parts = [look_up(torch.tensor(mixture.ids)) for mixture in MIXTURES]  # scaled where the family scales them
        expected = torch.stack(
            [torch.tensor(mixture.weights) @ part for mixture, part in zip(MIXTURES, parts, strict=True)]
        )
        torch.testing.assert_close(look_up(torch.tensor(given)), expected)
        assert torch.equal(look_up.weight[:VOCABULARY], table)
        assert torch.equal(model(input_ids=IDS).logits, before)


class PerLayer(nn.Module):
    """Looks its input ids up in a second table."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(VOCABULARY, 8), nn.Embedding(VOCABULARY, 4)

    def get_input_embeddings(self) -> nn.Module:
        return self.first

    def get_output_embeddings(self) -> None:
        return None


def test_a_model_that_looks_ids_up_elsewhere_too_takes_no_mixtures() -> None:
    model = PerLayer()
    assert add_spare_rows(model, 4) is None
    assert model.first.weight.shape[0] == VOCABULARY


@pytest.mark.parametrize("mixes", [True, False])
def test_the_runner_says_what_a_request_can_reach(mixes: bool) -> None:
    settings = EngineSettings(page_size=4, max_seqs=4, max_batch_tokens=16, max_model_len=64)
    loaded = check(tiny_model("llama"), settings)
    assert loaded.mixtures is not None
    runner = TorchRunner(lambda: loaded if mixes else replace(loaded, mixtures=None), settings)
    try:
        always = {Capability.LOGIT_ROWS, Capability.FORK, Capability.TREES, Capability.PROMPT_LOGPROBS}
        always |= {
            Capability.SAMPLER_TRACE,
            Capability.PROCESSED_LOGPROBS,
            Capability.LOGPROB_TOKEN_IDS,
            Capability.DRAFTS,
        }
        assert runner.capabilities == always | ({Capability.INPUT_EMBEDDINGS} if mixes else set())
    finally:
        runner.engine.close(1.0)
