"""EAGER: one more sample where, and only where, the model is uncertain (arXiv 2510.11170, EAGER-init)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.contract import Param, SamplerError
from samplers.programs.branch import DEAD_END, Branch, Token
from samplers.programs.contract import PROGRAMS, BaseProgram, Run, Setting, Task
from samplers.programs.rows import Rows
from samplers.quantise import draw
from samplers.rng import Noise, Purpose
from samplers.temperature import GREEDY_BELOW


@PROGRAMS.register
class Eager(BaseProgram):
    """A sequence forks where the entropy of its row exceeds `theta`, while there are fewer than n sequences.

    Every pass takes all sequences one token further; within it they decide in order of creation. Choice i is the i-th
    sequence. All stream while they grow; a fork's first delta holds what it shares with its parent. `top2` forks take
    the two best tokens. `split` forks take the best token and a draw from all others - the plain draw, whatever draw
    the request has - so that means over the sequences weighted by `tree_weight` are unbiased.
    """

    name = "eager"
    params = (
        Param("theta", float, 2.0),  # nats; negative: fork everywhere
        Param("entropy_top_k", int, 20, low=2),
        Param("fork_mode", str, "top2", choices=("top2", "split")),
    )
    draws = frozenset({"iid", "gumbel"})
    default_n = 32
    default_temperature = 0.6

    def check(self, values: Mapping[str, Any], setting: Setting) -> None:
        super().check(values, setting)
        if values["fork_mode"] == "split" and setting.temperature < GREEDY_BELOW:
            raise SamplerError("'split' forks draw a token, which temperature 0 does not", "fork_mode")

    def run(self, task: Task) -> Run:
        split = task.values["fork_mode"] == "split"
        made = [_Sequence(0, task.root)]
        live = made.copy()
        while live:
            rows = yield [sequence.branch for sequence in live]
            uncertain = (entropies(rows.raw, task.values["entropy_top_k"]) > task.values["theta"]).tolist()
            best, drawn = rows.best(2), rows.draws()
            forking = [row for row in range(len(live)) if uncertain[row] and len(best[row]) == 2]
            forking = forking[: task.n - len(made)]
            forks = [live[row].fork(len(made) + i) for i, row in enumerate(forking)]
            others = _draw_others(rows, forking, best, forks) if split else [best[row][1] for row in forking]
            for row, fork, other in zip(forking, forks, others, strict=True):
                first, second = best[row]
                share = math.exp(min(first.logq, 0.0)) if split else 1 / (1 + math.exp(second.logq - first.logq))
                fork.take(other, 1 - share)
                live[row].take(first, share)
            for row in set(range(len(live))).difference(forking):
                live[row].take(drawn[row])
            made += forks
            for sequence in live + forks:
                sequence.show(task)
            live = [sequence for sequence in live + forks if sequence.branch.end is None]
        task.report |= {
            "sequences": len(made),
            "budget": task.n,
            "unused_budget": task.n - len(made),
            "edges": sum(len(sequence.branch) - sequence.depth for sequence in made),  # tokens generated
        }


def entropies(logits: Tensor, k: int) -> Tensor:
    """Entropy of each row's k most probable tokens, renormalised. logits: [R, V] -> [R] fp64, nats."""
    top = logits.topk(min(k, logits.shape[1]), 1).values
    return torch.special.entr(top.double().softmax(1)).sum(1)


@dataclass(eq=False, slots=True)
class _Sequence:
    choice: int
    branch: Branch
    parent: int | None = None  # choice it was forked from
    depth: int = 0  # tokens it shares with its parent
    weight: float = 1.0  # product of the shares it took at forks

    def fork(self, choice: int) -> _Sequence:
        return _Sequence(choice, self.branch.fork(1), self.choice, len(self.branch), self.weight)

    def take(self, token: Token | None, share: float = 1.0) -> None:
        self.weight *= share
        if token is None:
            self.branch.end = DEAD_END
        else:
            self.branch.push(token)

    def show(self, task: Task) -> None:
        if self.branch.end is None:
            task.show(self.choice, self.branch)
            return
        details = {"tree_weight": self.weight, "parent": self.parent, "branch_depth": self.depth}
        task.show(self.choice, self.branch, **details, logprob=self.branch.logprob)
        self.branch.release()


def _draw_others(
    rows: Rows, forking: Sequence[int], best: Sequence[Sequence[Token]], forks: Sequence[_Sequence]
) -> list[Token]:
    """What each fork draws, from its own random stream, of its row without the best token."""
    streams = [fork.branch.stream for fork in forks]
    keys = np.array([stream.key for stream in streams], np.int64)
    choices = np.array([stream.choice for stream in streams], np.int64)
    positions = np.array([fork.depth for fork in forks], np.int64)
    bits = torch.from_numpy(Noise(keys, choices, positions).bits(Purpose.DRAW))
    device = rows.shaped.device
    masked = torch.tensor([best[row][0].id for row in forking], dtype=torch.int64, device=device).unsqueeze(1)
    among = rows.shaped[torch.tensor(forking, dtype=torch.int64, device=device)].scatter(1, masked, -torch.inf)
    ids = torch.zeros(len(rows), 1, dtype=torch.int64, device=device)
    ids[forking] = draw(among, bits.to(device)).unsqueeze(1)
    tokens = rows.tokens(ids)
    return [tokens[row][0] for row in forking]
