"""Contracts of what later features plug in: registries and the draft tree."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch

from samplers import registry as registry_module
from samplers.contract import SamplerError
from samplers.registry import Registry
from spec_decode.contract import DraftTree, Law, TreeError


class Plugin:
    name = "plugin"


def test_an_empty_registry_says_so() -> None:
    registry: Registry[Plugin] = Registry("plugin", "no.group")
    with pytest.raises(SamplerError, match="unknown plugin 'anything'; known: none"):
        registry.get("anything")


def test_third_parties_register_through_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("plugin", f"{__name__}:Plugin", "some.group")
    monkeypatch.setattr(registry_module, "entry_points", lambda group: [entry] if group == "some.group" else [])
    registry: Registry[Plugin] = Registry("plugin", "some.group")
    assert registry.get("plugin").name == "plugin" and "plugin" in registry
    with pytest.raises(SamplerError, match="unknown plugin 'x'; known: plugin"):
        registry.get("x", "sampler.name")
    with pytest.raises(ValueError, match="taken"):
        registry.register(Plugin)


def tree(parents: list[int], laws: list[int] | None = None, q_rows: list[int] | None = None) -> DraftTree:
    count = len(parents)
    return DraftTree(
        np.arange(count),
        np.array(parents, np.int32),
        np.array(laws or [Law.ONE_HOT] * count, np.uint8),
        np.array(q_rows or [-1] * count, np.int32),
        np.zeros(count, np.float32),
        torch.full((2, 5), 0.2),
    )


def test_draft_trees_check_themselves() -> None:
    good = tree([-1, 0, 0, 1, -1])
    good.check()
    assert good.depths.tolist() == [1, 2, 2, 3, 1]
    tree([]).check()
    tree([-1, 0], [Law.DENSE, Law.DENSE], [0, 1]).check()
    for bad in (tree([0]), tree([-1, 2, 0]), tree([-2]), tree([-1], [Law.DENSE], [2]), tree([-1], [Law.DENSE], [-1])):
        with pytest.raises(TreeError):
            bad.check()


def test_a_part_of_a_tree_is_a_tree() -> None:
    whole = tree([-1, 0, 0, 1, -1], [Law.ONE_HOT, Law.DENSE, Law.DENSE, Law.ONE_HOT, Law.ONE_HOT], [-1, 0, 1, -1, -1])
    part = whole.part([0, 2, 4])
    part.check()
    assert (part.tokens.tolist(), part.parents.tolist(), part.q_rows.tolist()) == ([0, 2, 4], [-1, 0, -1], [-1, 1, -1])
    empty = whole.part([])
    empty.check()
    assert empty.depths.tolist() == []
