"""Mistakes that are known from other implementations. Each must fail the comparison of laws, or that proves nothing.

Names in brackets are those of the specification's negative tests.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import pytest

from spec_decode.verify import reference
from spec_decode.verify.reference import Chance, Draft, Number, Row, Rule, Stop, excess, norm, path, ratio
from tests.spec_decode.drafters import iid, static, swor, table, top, unit, without
from tests.spec_decode.enumeration import (
    Drafter,
    Explorer,
    Keys,
    Model,
    Pick,
    Step,
    Tokens,
    emit,
    error,
    law,
    shared,
    specified,
    steps_error,
)

BIASED = 1e-3
EXACT = 1e-12
P, Q = table(1, 3), table(2, 3)


def worst(drafter: Callable[[Model], Drafter], rule: Rule, length: int = 2, vocab: int = 3) -> Number:
    """The largest error among a few pairs of models."""
    return max(
        steps_error(table(2 * seed, vocab), drafter(table(2 * seed + 1, vocab)), rule, vocab, length)
        for seed in range(4)
    )


# --- drafts whose law is not the one they are judged by


def claimed(
    tokens: Callable[[Row, Pick], list[int]], laws: Callable[[Row, list[int]], list[Row]]
) -> Callable[[Model], Drafter]:
    """Drafters of siblings below the root: how tokens are chosen, and what is said about it."""

    def of(draft: Model) -> Drafter:
        def propose(prefix: Tokens, pick: Pick) -> list[Draft]:
            row = draft(prefix)
            found = tokens(row, pick)
            return [Draft(token, -1, said) for token, said in zip(found, laws(row, found), strict=True)]

        return propose

    return of


def independent(count: int) -> Callable[[Row, Pick], list[int]]:
    return lambda row, pick: [pick(node, row) for node in range(count)]


def in_turn(count: int) -> Callable[[Row, Pick], list[int]]:
    def tokens(row: Row, pick: Pick) -> list[int]:
        return [token for token, *_ in swor(row, count, lambda rest: pick(rest.count(0), rest))]

    return tokens


def as_one_row(row: Row, tokens: list[int]) -> list[Row]:
    return [row] * len(tokens)


def as_in_turn(row: Row, tokens: list[int]) -> list[Row]:
    return [without(row, tokens[:node]) for node in range(len(tokens))]


WRONG_DRAFTS = {
    "argmax as if drawn [N1]": claimed(lambda row, pick: top(row, 1), as_one_row),
    "repeated drafts left out, not their law [N2]": claimed(
        lambda row, pick: list(dict.fromkeys(independent(2)(row, pick))), as_one_row
    ),
    "most probable tokens as if drawn in turn [N5]": claimed(lambda row, pick: top(row, 2), as_in_turn),
    "the better of two drawn, as if drawn [N7]": claimed(
        lambda row, pick: [max(independent(2)(row, pick), key=lambda token: row[token])], as_one_row
    ),
    "improbable tokens dropped after they were drawn [N12]": claimed(
        lambda row, pick: [token for token in independent(1)(row, pick) if row[token] > 0.3], as_one_row
    ),
}
RIGHT_DRAFTS = {
    "drawn": claimed(independent(1), as_one_row),
    "drawn twice": claimed(independent(2), as_one_row),
    "drawn in turn": claimed(in_turn(2), as_in_turn),
}


@pytest.mark.parametrize("drafter", WRONG_DRAFTS)
def test_drafts_of_another_law_are_noticed(drafter: str) -> None:
    for rule in (reference.rrs, reference.traversal):
        assert worst(WRONG_DRAFTS[drafter], rule) > BIASED


@pytest.mark.parametrize("drafter", RIGHT_DRAFTS)
def test_the_same_drafts_with_their_own_law_are_fine(drafter: str) -> None:
    for rule in (reference.rrs, reference.traversal):
        assert worst(RIGHT_DRAFTS[drafter], rule) < EXACT


def test_siblings_in_reverse_order_are_noticed() -> None:
    """[N6]"""

    def reversed_drafts(draft: Model) -> Drafter:
        forwards = RIGHT_DRAFTS["drawn in turn"](draft)
        return lambda prefix, pick: forwards(prefix, pick)[::-1]

    assert worst(reversed_drafts, reference.rrs) > BIASED
    assert worst(reversed_drafts, reference.traversal) > BIASED


def test_an_illegal_token_must_not_be_cut_away() -> None:
    """[N8] The draft ends before it, so that the target is drawn as if nothing had been drafted."""

    def legal(tokens: Tokens) -> Row:
        return without(P(tokens), [2])

    def cut(prefix: Tokens, pick: Pick) -> list[Draft]:
        drafts = static(Q, iid, [1, 1])(prefix, pick)
        tokens = [draft.token for draft in drafts]
        return drafts[: tokens.index(2)] if 2 in tokens else drafts

    for rule in (reference.token, reference.block):
        assert steps_error(legal, cut, rule, 3, 3) > BIASED
    assert steps_error(legal, lambda prefix, pick: [], reference.token, 3, 3) < EXACT


# --- rules


def token_by(
    test: Callable[[Row], Row], rest: Callable[[Row, Row], Row], bonus: Callable[[Row], Row] = lambda row: row
) -> Rule:
    """The token rule with these rows in its test, behind a rejection and behind the last draft."""

    def rule(drafts: Sequence[Draft], rows: Sequence[Row], chance: Chance) -> Stop:
        for node, draft in enumerate(drafts):
            if not chance.accept(node, ratio(test(rows[node])[draft.token], draft.law[draft.token])):
                return Stop(node - 1, chance.draw(node, rest(rows[node], draft.law), True))
        return Stop(len(drafts) - 1, chance.draw(len(drafts), bonus(rows[-1]), False))

    return rule


def same(row: Row) -> Row:
    return row


def left(p: Row, q: Row) -> Row:
    return norm(excess(p, q), p)


def truncated(row: Row) -> Row:
    return without(row, [min(range(len(row)), key=lambda token: row[token])])


def block_with(
    last: Callable[[Number, Number], Number] = min, rest: Callable[[Number, Row, Row], list[Number]] | None = None
) -> Rule:
    """Block verification whose last rate is last(ratio so far, 1), or with another residual."""

    def rule(drafts: Sequence[Draft], rows: Sequence[Row], chance: Chance) -> Stop:
        rates, product = [1.0], 1.0
        for node, draft in enumerate(drafts):
            factor = rows[node][draft.token] / draft.law[draft.token]
            rates.append(min(rates[-1] * factor, 1.0))
            product *= factor
        count = len(drafts)
        for length in range(count, -1, -1):
            if length == count:
                needed = min(last(rates[-2] * factor, product), 1.0)
                if chance.accept(count - 1, needed):
                    return Stop(count - 1, chance.draw(count, rows[count], False))
                continue
            p, q, rate = rows[length], drafts[length].law, rates[length]
            weights = excess(p, q, rate)
            gap = sum(weights) + 1 - rate
            if length == 0 or chance.accept(length - 1, sum(weights) / gap if gap > 0 else 1):
                weights = weights if rest is None else rest(rate, p, q)
                return Stop(length - 1, chance.draw(length, norm(weights, p), True))
        raise AssertionError

    return rule


def chain_of_two(draft: Model) -> Drafter:
    return static(draft, iid, [1, 1])


WRONG_RULES = {
    "hierarchical speculation without the cap [N4]": block_with(last=lambda capped, product: product),
    "typical acceptance [N13]": reference.typical(0.09, 0.3),
    "the target's row behind a rejection [N14]": token_by(same, lambda p, q: p),
    "the token rule's residual in the block rule [N15]": block_with(rest=lambda rate, p, q: excess(p, q)),
}
RIGHT_RULES = {"token": token_by(same, left), "block": block_with()}


@pytest.mark.parametrize("rule", WRONG_RULES)
def test_wrong_rules_are_noticed(rule: str) -> None:
    assert worst(chain_of_two, WRONG_RULES[rule], 3, vocab=5) > BIASED


@pytest.mark.parametrize("rule", RIGHT_RULES)
def test_the_same_rules_without_the_mistake_are_fine(rule: str) -> None:
    assert worst(chain_of_two, RIGHT_RULES[rule], 3, vocab=5) < EXACT


def test_what_is_processed_must_be_so_in_the_test_as_well() -> None:
    """[N3] The rules see the model's own rows; what is emitted should have the law of the truncated ones."""

    def rest(p: Row, q: Row) -> Row:
        return left(truncated(p), q)

    def bias(rule: Rule) -> Number:
        outcomes = law(lambda run: emit(run, (), P, chain_of_two(Q), rule)[0])
        return error(outcomes, lambda tokens: truncated(P(tokens)), 3, 3)

    assert bias(token_by(same, rest, truncated)) > BIASED
    assert bias(token_by(truncated, rest, truncated)) < EXACT


def test_a_penalty_must_have_seen_all_accepted_tokens() -> None:
    """[N11] Two steps; what the second knows of the first is all its tokens, or only the last."""

    def penalised(row: Row, seen: Tokens) -> Row:
        weights = [weight * 0.4 ** seen.count(token) for token, weight in enumerate(row)]
        return norm(weights, row)

    def target(tokens: Tokens) -> Row:
        return penalised(P(tokens), tokens)

    def bias(known: Callable[[Tokens], Tokens]) -> Number:
        def program(run: Explorer) -> Tokens:
            first, _ = emit(run, (), target, chain_of_two(Q), reference.token)
            state = known(first)

            def behind(tokens: Tokens) -> Row:
                return penalised(P(tokens), (*state, *tokens[len(first) :]))

            return first + emit(run, first, behind, chain_of_two(Q), reference.token)[0]

        return error(law(program), target, 3, 4)

    assert bias(lambda tokens: tokens[-1:]) > BIASED
    assert bias(lambda tokens: tokens) < EXACT


# --- numbers


def by_position(*purposes: str) -> Keys:
    """Numbers of these purposes are keyed by the position of the drafted token, not by the step's beginning."""

    def keys(purpose: str, start: int, offset: int, node: int) -> Hashable:
        return (purpose, start + offset) if purpose in purposes else specified(purpose, start, offset, node)

    return keys


@pytest.mark.parametrize("purposes", [("draft",), ("accept",), ("draft", "accept")], ids="+".join)
def test_block_verification_must_not_use_numbers_again(purposes: tuple[str, ...]) -> None:
    """[N9] The law of two steps, whose drafts or tests share numbers. The token rule does not mind."""

    def bias(rule: Rule, keys: Keys) -> Number:
        return max(
            steps_error(table(2 * seed, 2), chain_of_two(table(2 * seed + 1, 2)), rule, 2, 4, steps=2, keys=keys)
            for seed in (3, 4)
        )

    for rule in (reference.block, reference.traversal):
        assert bias(rule, by_position(*purposes)) > BIASED
        assert bias(rule, specified) < EXACT
    assert bias(reference.token, by_position(*purposes)) < EXACT


def test_shared_numbers_are_for_sample_and_compare_only() -> None:
    """[N10]"""
    for rule in (reference.token, reference.block):
        assert steps_error(table(2, 5), static(table(3, 5), iid, [1]), rule, 5, 2, keys=shared) > BIASED
    assert steps_error(P, chain_of_two(Q), reference.match, 3, 4, steps=2, keys=shared) < EXACT


def test_certain_drafts_that_read_the_numbers_are_fine_for_sample_and_compare() -> None:
    """A drafter that knows what the target will draw, and proposes it or something else."""
    for lie in (0, 1):

        def program(run: Explorer, lie: int = lie) -> Tokens:
            step = Step(run, 0)
            known = (step.draw(0, P(()), False) + lie) % 3
            drafts = [Draft(known, -1, unit(known, 3), False)]
            stop = reference.match(drafts, [P(()), P((known,))], step)
            return (*path(drafts, stop.place), stop.token)

        assert error(law(program), P, 3, 2) < EXACT
