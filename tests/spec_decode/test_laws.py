"""Every rule with every draft law, through all outcomes: what is emitted has the target's joint law."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from spec_decode.verify.reference import LOSSLESS, Draft, Number, Row, depth, path
from tests.spec_decode.drafters import (
    fractions,
    hu,
    hu_certain_first,
    iid,
    merged,
    sequences,
    static,
    swor,
    swor_then_certain,
    table,
    topk,
    unit,
)
from tests.spec_decode.enumeration import (
    Drafter,
    Explorer,
    Model,
    Pick,
    Step,
    Tokens,
    accepted,
    emit,
    error,
    law,
    steps_error,
)

EXACT = 1e-12
CHAIN_RULES = ("match", "token", "block", "rrs", "hu", "traversal")
TREE_RULES = ("match", "rrs", "hu", "traversal")
CHAINS = {"drawn": iid, "one-hot": topk}
SIBLINGS = {
    "iid": iid,
    "swor": swor,
    "topk": topk,
    "hu": hu,
    "hu, certain first": hu_certain_first,
    "swor, then certain": swor_then_certain,
    "merged": merged,
}


@pytest.mark.parametrize("siblings", CHAINS)
@pytest.mark.parametrize("rule", CHAIN_RULES)
def test_chains(rule: str, siblings: str) -> None:
    for vocab, length in ((5, 1), (5, 3)):
        drafter = static(table(2, vocab), CHAINS[siblings], [1] * length)
        assert steps_error(table(1, vocab), drafter, LOSSLESS[rule], vocab, length + 1) < EXACT


@pytest.mark.parametrize("siblings", SIBLINGS)
@pytest.mark.parametrize("rule", TREE_RULES)
def test_trees(rule: str, siblings: str) -> None:
    for vocab, branching in ((5, [2]), (4, [3]), (3, [2, 1]), (3, [1, 2]), (2, [2, 2]), (2, [2, 1, 1])):
        drafter = static(table(4, vocab), SIBLINGS[siblings], branching)
        assert steps_error(table(3, vocab), drafter, LOSSLESS[rule], vocab, len(branching) + 1) < EXACT


@pytest.mark.parametrize("rule", ["kseq", "match", "rrs", "traversal"])
def test_sequences(rule: str) -> None:
    for vocab, count, length in ((5, 3, 1), (3, 2, 2), (2, 3, 2), (2, 1, 3)):
        drafter = sequences(table(6, vocab), count, length)
        assert steps_error(table(5, vocab), drafter, LOSSLESS[rule], vocab, length + 1) < EXACT


@pytest.mark.parametrize("rule", LOSSLESS)
def test_two_steps(rule: str) -> None:
    """Catches numbers that one step's outcome depends on and the next uses again."""
    drafter = static(table(8, 2), iid, [1, 1])
    assert steps_error(table(7, 2), drafter, LOSSLESS[rule], 2, 5, steps=2) < EXACT


@pytest.mark.parametrize("rule", [rule for rule in LOSSLESS if rule != "kseq"])  # whose factor is irrational
def test_fractions_are_exactly_right(rule: str) -> None:
    """Rows with zeros in both models, too."""
    chain = rule in ("token", "block")
    for siblings, branching in ((iid, [1, 1]), (topk, [1, 1])) if chain else ((swor, [2, 1]), (hu, [2, 1])):
        drafter = static(fractions(10, 3), siblings, branching)
        assert steps_error(fractions(9, 3), drafter, LOSSLESS[rule], 3, 3) == 0


# --- adapted drafts


def stopping(draft: Model, branching: int) -> Drafter:
    """Levels are drawn until a token 0 has been drawn: stopping depends on what was drawn before."""

    def propose(prefix: Tokens, pick: Pick) -> list[Draft]:
        drafts: list[Draft] = []
        place = -1
        while place < 0 or (drafts[place].token != 0 and len(drafts) < 3):
            row = draft((*prefix, *path(drafts, place)))
            for _ in range(branching if place < 0 else 1):
                drafts.append(Draft(pick(len(drafts), row), place, row))
            place = len(drafts) - 1
        return drafts

    return propose


def wandering(draft: Model) -> Drafter:
    """A random tree: each node's parent depends on the tokens drawn so far."""

    def propose(prefix: Tokens, pick: Pick) -> list[Draft]:
        drafts: list[Draft] = []
        for node in range(3):
            parent = sum(draft.token + 1 for draft in drafts) % (node + 1) - 1
            row = draft((*prefix, *path(drafts, parent)))
            drafts.append(Draft(pick(node, row), parent, row))
        return drafts

    return propose


@pytest.mark.parametrize("rule", CHAIN_RULES)
def test_drafting_may_stop_for_what_has_been_drawn(rule: str) -> None:
    assert steps_error(table(11, 3), stopping(table(12, 3), 1), LOSSLESS[rule], 3, 4) < EXACT


@pytest.mark.parametrize("rule", TREE_RULES)
def test_trees_may_grow_by_what_has_been_drawn(rule: str) -> None:
    assert steps_error(table(11, 3), stopping(table(12, 3), 2), LOSSLESS[rule], 3, 3) < EXACT
    assert steps_error(table(13, 3), wandering(table(14, 3)), LOSSLESS[rule], 3, 4) < EXACT


@pytest.mark.parametrize("rule", TREE_RULES)
def test_levels_may_be_cut(rule: str) -> None:
    """For load, which has nothing to do with the tokens; sequences of different lengths under K-SEQ."""
    whole = static(table(16, 3), swor, [2, 1])

    def cut(deepest: int) -> Drafter:
        def propose(prefix: Tokens, pick: Pick) -> list[Draft]:
            drafts = whole(prefix, pick)
            return [draft for node, draft in enumerate(drafts) if depth(drafts, node) <= deepest]

        return propose

    for deepest in range(3):
        assert steps_error(table(15, 3), cut(deepest), LOSSLESS[rule], 3, 3) < EXACT
    ragged = [[-1, -1], [0], []]  # the second sequence has one node, the first has two

    def lengths(prefix: Tokens, pick: Pick) -> list[Draft]:
        drafts: list[Draft] = []
        for level in ragged:
            for parent in level:
                row = table(16, 3)((*prefix, *path(drafts, parent)))
                drafts.append(Draft(pick(len(drafts), row), parent, row))
        return drafts

    assert steps_error(table(15, 3), lengths, LOSSLESS["kseq"], 3, 3) < EXACT


@pytest.mark.parametrize("rule", CHAIN_RULES)
def test_illegal_tokens_are_leaves(rule: str) -> None:
    """Token 2 is forbidden by the target and not by the drafter; what would follow it is never drafted."""
    target = forbidding(table(17, 3), 2)
    assert steps_error(target, ended_by(table(18, 3), 2), LOSSLESS[rule], 3, 4) < EXACT


def forbidding(model: Model, token: int) -> Model:
    def row(tokens: Tokens) -> Row:
        kept = [0.0 if other == token else weight for other, weight in enumerate(model(tokens))]
        return [weight / sum(kept) for weight in kept]

    return row


def ended_by(draft: Model, token: int) -> Drafter:
    """Chains of up to three tokens."""

    def propose(prefix: Tokens, pick: Pick) -> list[Draft]:
        drafts: list[Draft] = []
        while len(drafts) < 3 and not (drafts and drafts[-1].token == token):
            row = draft((*prefix, *path(drafts, len(drafts) - 1)))
            drafts.append(Draft(pick(len(drafts), row), len(drafts) - 1, row))
        return drafts

    return propose


# --- rules that are one another


def outcomes(target: Model, drafter: Drafter, rule: str) -> dict[tuple[Tokens, int], Number]:
    return law(lambda run: emit(run, (), target, drafter, LOSSLESS[rule]))


def test_rules_agree_where_they_are_one() -> None:
    p, q = table(19, 3), table(20, 3)
    chain, pair = static(q, iid, [1, 1, 1]), static(q, hu, [2])
    same = (
        (static(q, iid, [1]), "token", "block"),
        (static(q, iid, [1]), "token", "kseq"),
        (static(q, hu, [1]), "token", "hu"),
        (chain, "token", "rrs"),
        (chain, "block", "traversal"),
        (pair, "hu", "rrs"),
    )
    for drafter, one, other in same:
        first, second = outcomes(p, drafter, one), outcomes(p, drafter, other)
        assert first.keys() == second.keys()
        assert all(abs(first[key] - second[key]) < EXACT for key in first)


def test_drafts_that_are_not_drawn_are_accepted_alike_by_all_rules() -> None:
    p, q = table(21, 4), table(22, 4)
    for branching, rules in (([1, 1, 1], CHAIN_RULES), ([2, 2], TREE_RULES)):
        found = [accepted(p, static(q, topk, branching), LOSSLESS[rule]) for rule in rules]
        assert all(abs(value - found[0][i]) < EXACT for values in found for i, value in enumerate(values))


@pytest.mark.parametrize("rule", ["token", "block", "rrs", "hu", "traversal", "kseq"])
def test_a_perfect_drafter_is_always_believed(rule: str) -> None:
    model = table(23, 3)
    assert abs(accepted(model, static(model, iid, [1, 1]), LOSSLESS[rule])[1] - 2) < EXACT


@pytest.mark.parametrize("rule", LOSSLESS)
def test_a_drafter_of_impossible_tokens_is_never_believed(rule: str) -> None:
    target = forbidding(table(24, 3), 0)
    drafter = static(lambda _: unit(0, 3), iid, [1, 1])
    assert accepted(target, drafter, LOSSLESS[rule]) == (0, 0)
    assert steps_error(target, drafter, LOSSLESS[rule], 3, 2) < EXACT


def test_all_tokens_drafted_without_replacement_cover_everything() -> None:
    p, q = table(25, 3), table(26, 3)
    for rule in ("rrs", "traversal", "hu"):
        assert abs(accepted(p, static(q, swor, [3]), LOSSLESS[rule])[0] - 1) < EXACT


def test_the_enumerator_knows_a_number_that_is_used_twice() -> None:
    def same(run: Explorer) -> Sequence[int]:
        step = Step(run, 0, lambda *_: "one")
        return step.draw(0, [0.5, 0.25, 0.25], False), step.draw(1, [0.25, 0.5, 0.25], False)

    expected = {(0, 0): 0.25, (0, 1): 0.25, (1, 1): 0.25, (2, 2): 0.25}
    assert law(same) == expected
    assert error({(0,): 1.0}, lambda _: [0.5, 0.5], 2, 2) == 0.25
