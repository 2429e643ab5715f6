"""Tokens per pass of the target at an equal number of drafted tokens: `drafthouse bench spec --part passes`.

Chains and trees behind places of texts that the target has written; each is verified by every rule it is made for. A
pass gives the accepted drafts and the rule's own token. Chains that were drawn count by the closed form of what their
rule is expected to accept of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from bench import estimates
from bench.claims import Claim
from bench.estimates import Array, Figure
from bench.progress import Begin, Done
from bench.sampler_runs import Sampling
from bench.spec_acceptance import by_prompt
from bench.spec_rig import MAX_NODES, Drafting, Drafts, Pair, Rig
from bench.spec_texts import TASKS, TEMPERATURES, Case, case_name, chain_at, places, prompts
from spec_decode.contract import DraftPlan
from spec_decode.optimal_tree import optimal_tree
from spec_decode.theory.chains import block_length, token_length
from spec_decode.tree_forms import Form, chain, halving, sequences, static

BUDGETS = (4, 8, 16, MAX_NODES)
_MORE = 1e-9  # tokens
SIBLINGS = 4  # of which it is measured how often each is accepted
GROWN_SIBLINGS = 2
CHAIN, GROWN, BEST = "chain", "grown tree", "best tree"
_LENGTHS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "token": token_length,
    "block": block_length,
}


@dataclass(frozen=True)
class Size:
    """How much is drawn."""

    prompts: int = 64  # of each task
    places: int = 4  # of each prompt
    tokens: int = 96  # of the target's texts, at most
    turns: int = 8  # drafts at each place that are drawn
    verified: int = 4  # times each


FULL = Size()
QUICK = Size(prompts=12, places=2, tokens=48, turns=2)


@dataclass(frozen=True)
class Row:
    """One kind of drafts under one rule."""

    drafts: str
    rule: str
    budget: int  # drafted tokens, at most
    by_prompt: Array  # tokens per pass, [prompts]

    @property
    def tokens(self) -> Figure:
        return estimates.mean(self.by_prompt, seed=10)


@dataclass
class Passes:
    """Everything that was measured."""

    size: Size
    rows: dict[Case, list[Row]] = field(default_factory=dict)
    forms: dict[Case, dict[int, Form]] = field(default_factory=dict)  # of the best trees, by budget
    claims: list[Claim] = field(default_factory=list)


@dataclass(frozen=True)
class _Kind:
    name: str
    drafting: Drafting
    rules: tuple[str, ...]


class Measuring:
    """The embedded pair."""

    def __init__(self, sampling: Sampling, size: Size) -> None:
        self._sampling, self._size = sampling, size

    def measure(self, begin: Begin, done: Done) -> Passes:
        """Raises Failed."""
        size, found = self._size, Passes(self._size)
        pair = Pair(size.prompts * size.places)
        begin(len(TASKS) * len(TEMPERATURES) * (size.prompts + len(BUDGETS)))
        for temperature in TEMPERATURES:
            for task in TASKS:
                asked = prompts(self._sampling, task, size.prompts)
                at = places(self._sampling, asked, temperature, size.places, size.tokens, done)
                rig = Rig(pair, at, temperature, chain_at(self._sampling, temperature))
                case, rates = (task, temperature), _acceptance(rig, size, drawn=temperature > 0)
                found.rows[case], found.forms[case] = [], {}
                for budget in BUDGETS:
                    form = found.forms[case][budget] = optimal_tree(rates, budget, budget, _fixed_size(budget)).form
                    kinds = _drawn(budget, form) if temperature else _ranked(budget, form)
                    for kind in kinds:
                        if kind.name == BEST and form == chain(budget):
                            continue  # no tree of several drafts is better
                        found.rows[case] += _measure(rig, kind, budget, size, drawn=temperature > 0)
                    done()
                found.claims += claims(case, found.rows[case])
        return found


def _drawn(budget: int, best: Form) -> list[_Kind]:
    halved = static(halving(2, budget), budget)
    return [
        _Kind(CHAIN, Drafting.of(chain(budget)), ("token", "block")),
        _Kind("2 sequences", Drafting.of(sequences(2, budget // 2), "iid"), ("rrs", "kseq")),
        _Kind("tree 2, 1, ..", Drafting.of(halved, "swor"), ("rrs", "traversal")),
        _Kind("tree 2, 1, ..", Drafting.of(halved, "hu"), ("hu", "traversal")),
        _Kind("tree 4, 2, ..", Drafting.of(static(halving(4, budget), budget), "hu"), ("hu", "traversal")),
        _Kind(GROWN, _grown(budget, "swor"), ("rrs", "traversal")),
        _Kind(GROWN, _grown(budget, "hu"), ("hu", "traversal")),
        _Kind(BEST, Drafting.of(best, "swor"), ("rrs", "traversal")),
    ]


def _ranked(budget: int, best: Form) -> list[_Kind]:
    """At temperature 0, where all rules are one."""
    return [
        _Kind(CHAIN, Drafting.of(chain(budget)), ("token",)),
        _Kind("tree 2, 1, ..", Drafting.of(static(halving(2, budget), budget), "topk"), ("rrs",)),
        _Kind("tree 4, 2, ..", Drafting.of(static(halving(4, budget), budget), "topk"), ("rrs",)),
        _Kind(GROWN, _grown(budget, "topk"), ("rrs",)),
        _Kind(BEST, Drafting.of(best, "topk"), ("rrs",)),
    ]


def _grown(budget: int, law: str) -> Drafting:
    return Drafting(DraftPlan(budget, budget, None, GROWN_SIBLINGS), law)


def _fixed_size(budget: int) -> Callable[[int, int], float]:
    """Costs under which only trees of so many nodes are wanted, of whichever depth."""
    return lambda nodes, depth: 1.0 if nodes == budget else float("inf")


def _acceptance(rig: Rig, size: Size, drawn: bool) -> list[float]:
    """How often the first, second, ... sibling is the one that is accepted."""
    drafting = Drafting.of((-1,) * SIBLINGS, "swor" if drawn else "topk")
    counts = np.zeros(SIBLINGS)
    turns = size.turns if drawn else 1
    for turn in range(turns):
        verdict = rig.draft(drafting, turn).verify("rrs", turn)
        counts += np.bincount(verdict.path[verdict.n_acc > 0, 0], minlength=SIBLINGS)
    rates: list[float] = (counts / (turns * len(rig.places))).tolist()
    return rates


def _measure(rig: Rig, kind: _Kind, budget: int, size: Size, drawn: bool) -> list[Row]:
    turns = size.turns if drawn else 1
    tokens = {rule: np.ones(len(rig.places)) for rule in kind.rules}
    for turn in range(turns):
        drafts = rig.draft(kind.drafting, size.turns + turn)
        for rule in kind.rules:
            tokens[rule] += _accepted(drafts, rule, turn, size, exact=drawn and kind.name == CHAIN) / turns
    return [Row(_named(kind), rule, budget, by_prompt(rig.places, tokens[rule])) for rule in kind.rules]


def _named(kind: _Kind) -> str:
    return kind.name if kind.drafting.law == "auto" else f"{kind.name}, {kind.drafting.law}"


def _accepted(drafts: Drafts, rule: str, turn: int, size: Size, exact: bool) -> Array:
    """[places], expected or the mean over verifications."""
    if exact:
        lengths = [_LENGTHS[rule](*drafts.chain(at)).item() for at in range(len(drafts.trees))]
        return np.array(lengths)
    counts = [drafts.verify(rule, turn * size.verified + again).n_acc for again in range(size.verified)]
    return np.mean(counts, 0)


def claims(case: Case, rows: list[Row]) -> list[Claim]:
    """Of every budget."""
    made = []
    for budget in BUDGETS:
        own = [row for row in rows if row.budget == budget]
        chains = {row.rule: row for row in own if row.drafts == CHAIN}
        said = f"{case_name(case)}, {budget} drafted tokens"
        if "block" in chains:
            text = f"{said}: block verification gives at least what the token rule does"
            made.append(_claim(text, chains["block"], chains["token"], 0.0))
        chain_, tree = (max(some, key=lambda row: row.tokens.value) for some in _parted(own))
        text = f"{said}: the best multi-draft tree ({tree.drafts}; {tree.rule}) gives more than the best chain"
        made.append(_claim(text, tree, chain_, _MORE))
    return made


def _parted(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """(chains, trees)"""
    return [row for row in rows if row.drafts == CHAIN], [row for row in rows if row.drafts != CHAIN]


def _claim(text: str, better: Row, other: Row, least: float) -> Claim:
    figure = estimates.mean(better.by_prompt - other.by_prompt, seed=10)
    return Claim.of_target(text, figure, least, f"{figure.text(3)} tokens")
