"""Arithmetic sampling: the laws of one choice and of all together, on models small enough to enumerate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import samplers  # noqa: F401  registers the stages and draws
from samplers.arithmetic import Arithmetic, Codes
from samplers.chain import resolve
from samplers.code import CODE_BITS, Code, fresh
from samplers.contract import Rows, SamplerError
from samplers.quantise import BITS, quantise, weights_of
from samplers.rng import Noise, Purpose, Stream, philox, philox_reference
from samplers.stack import SamplerStack

DRAW = Arithmetic()
VOCABULARY, LENGTH = 4, 3
Output = tuple[int, ...]


def dyadic(prefix: Output) -> torch.Tensor:
    """Logits of a toy model whose probabilities are powers of two and depend on the prefix."""
    powers = [1, 2, 3, 3]
    turn = (sum(prefix) + 2 * len(prefix)) % VOCABULARY
    return -torch.tensor(powers[turn:] + powers[:turn]).float() * float(np.log(2))


def smooth(prefix: Output) -> torch.Tensor:
    """Logits of a toy model without any structure."""
    generator = torch.Generator().manual_seed(1 + sum((token + 1) * 5**i for i, token in enumerate(prefix)) % 2**60)
    return torch.randn(VOCABULARY, generator=generator)


def halves(prefix: Output) -> torch.Tensor:
    """Logits of a toy model whose integer weights are exactly powers of two: one, two or four equal tokens."""
    row = torch.zeros(VOCABULARY)
    row[: (0, 2, 3)[sum(prefix[-2:]) % 3]] = -torch.inf
    return row


def decode(codes: Sequence[Code], model: Any, length: int, seed: int = 0) -> list[Output]:
    """What each code decodes to, all in one batch."""
    count = len(codes)
    state = Codes(count)
    state._codes[:] = codes
    outputs: list[Output] = [()] * count
    params = {"vocab_order": torch.zeros(count, dtype=torch.int64)}
    for position in range(length):
        logits = torch.stack([model(output) for output in outputs])
        tokens = DRAW.pick(logits, params, rows_of(range(count), [position] * count, seed), state)
        state.accept(torch.arange(count), tokens)
        outputs = [(*output, token) for output, token in zip(outputs, tokens.tolist(), strict=True)]
    return outputs


def rows_of(slots: Sequence[int], positions: Sequence[int], seed: int = 0) -> Rows:
    """Rows of one request, slot i holding choice i."""
    keys, where = np.full(len(slots), seed), np.array(positions)
    return Rows(torch.tensor(slots), torch.tensor(positions), Noise(keys, np.array(slots), where))


def request(
    model: Any, n: int, seed: int, length: int = LENGTH, batches: Sequence[Sequence[int]] | None = None, **fields: Any
) -> list[Output]:
    """The outputs of a request for n choices through the stack, its choices in these batches."""
    chain = resolve({"draw": "arithmetic", **fields}, VOCABULARY)
    stack = SamplerStack(n, VOCABULARY, torch.device("cpu"))
    for choice in range(n):
        stack.admit(choice, chain, seed=seed, choice=choice, prompt_ids=[0], n=n)
    outputs: list[Output] = [()] * n
    for position in range(length):
        for batch in batches or [range(n)]:
            slots = np.array(batch)
            logits = torch.stack([model(outputs[slot]) for slot in batch])
            sampled = stack.sample(logits, slots, np.full(len(batch), position))
            assert not sampled.failures
            assert not stack.accept(slots, sampled.tokens)
            for slot, token in zip(batch, sampled.tokens.tolist(), strict=True):
                outputs[slot] = (*outputs[slot], token)
    return outputs


def law(model: Any, length: int = LENGTH, **fields: Any) -> dict[Output, float]:
    """Probability of every output under the stages of these fields."""
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    stack.admit(0, resolve(fields, VOCABULARY), seed=0, choice=0, prompt_ids=[0])
    found: dict[Output, float] = {(): 1.0}
    for _ in range(length):
        longer = {}
        for output, probability in found.items():
            row = stack.shape(model(output)[None], np.array([0]), np.array([len(output)]))[0][0]
            shares = row.double().softmax(0).tolist()
            longer |= {(*output, token): probability * share for token, share in enumerate(shares)}
        found = longer
    return found


# --- all choices together


@pytest.mark.parametrize("fields", [{}, {"vocab_order": "seeded"}])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 16, 100, 128])
def test_every_output_occurs_as_often_as_its_share_rounded_down_or_up(n: int, fields: dict[str, Any]) -> None:
    expected = law(dyadic)
    for seed in range(8):
        counts = Counter(request(dyadic, n, seed, **fields))
        for output, probability in expected.items():
            share = n * Fraction(round(probability * 2**20), 2**20)
            assert int(share) <= counts[output] <= -int(-share // 1), (seed, output)


@pytest.mark.parametrize("fields", [{"temperature": 0.7}, {"top_k": 2}, {"temperature": 1.6, "top_p": 0.8, "top_k": 3}])
def test_the_count_law_holds_behind_temperature_and_truncation(fields: dict[str, Any]) -> None:
    expected = law(smooth, **fields)
    for seed in range(6):
        counts = Counter(request(smooth, 64, seed, **fields))
        for output, probability in expected.items():
            assert np.floor(64 * probability) <= counts[output] <= np.ceil(64 * probability)


def test_a_grid_of_codes_measures_every_interval_in_order() -> None:
    size = 4096
    outputs = decode([Code(k * (2**CODE_BITS // size) + 12345, 2**CODE_BITS) for k in range(size)], smooth, LENGTH)
    assert outputs == sorted(outputs)
    counts = Counter(outputs)
    for output, probability in law(smooth).items():
        assert abs(counts[output] / size - probability) <= 1 / size


def test_each_book_spreads_its_codes_as_it_says() -> None:
    n, whole = 16, 2**CODE_BITS
    for seed in (0, -3, 2**62):
        books = {
            book: [fresh(book, Stream(seed, choice), n) for choice in range(n)]
            for book in ("lattice", "reference", "sobol", "iid")
        }
        points = {book: sorted(code.x for code in codes) for book, codes in books.items()}
        assert all(code.width == whole and 0 <= code.x < whole for codes in books.values() for code in codes)
        gaps = {book: np.diff([*map(float, xs), xs[0] + float(whole)]) / whole for book, xs in points.items()}
        assert np.allclose(gaps["lattice"], 1 / n) and np.allclose(gaps["sobol"], 1 / n)
        assert np.allclose(np.sort(gaps["reference"]), [1 / (n + 1)] * (n - 1) + [2 / (n + 1)])
        assert gaps["iid"].max() > 1.5 / n
        assert [16 * x // whole for x in points["lattice"]] == list(range(n))
        halves = [2 * fresh("sobol", Stream(seed, choice), n).x // whole for choice in (0, 1)]
        assert sorted(halves) == [0, 1]  # of two choices, one in each half
    assert [code.x for code in books["lattice"]] != points["lattice"]  # the strata are dealt out


def test_prompts_of_one_request_form_groups_of_their_own() -> None:
    first, second = ([fresh("lattice", Stream(5, 8 * group + i), 8).x for i in range(8)] for group in (0, 1))
    for codes in (first, second):
        assert sorted(8 * x >> CODE_BITS for x in codes) == list(range(8))
    assert not set(first) & set(second)
    assert np.argsort(np.array(first, float)).tolist() != np.argsort(np.array(second, float)).tolist()


# --- one choice alone


@pytest.mark.parametrize("book", ["lattice", "reference", "sobol", "iid"])
def test_each_choice_alone_follows_the_model(book: str) -> None:
    requests, n = 2500, 4
    expected = law(smooth, 2)
    outputs = decode(
        [fresh(book, Stream(seed, choice), n) for choice in range(n) for seed in range(requests)], smooth, 2
    )
    for choice in range(n):
        seen = Counter(outputs[choice * requests : (choice + 1) * requests])
        result = stats.chisquare([seen[one] for one in expected], [requests * p for p in expected.values()])
        assert result.pvalue > 1e-6, choice


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.8, "top_k": 3}, {"vocab_order": "seeded"}])
def test_a_single_choice_is_a_plain_sample(fields: dict[str, Any]) -> None:
    count = 2000
    seen = Counter(request(smooth, 1, seed, length=1, **fields)[0] for seed in range(count))
    expected = {one: p for one, p in law(smooth, 1, **fields).items() if p} if "top_k" in fields else law(smooth, 1)
    assert set(seen) <= set(expected)
    result = stats.chisquare([seen[one] for one in expected], [count * p for p in expected.values()])
    assert result.pvalue > 1e-6


def test_ten_thousand_fair_coins() -> None:
    """A code of any fixed number of bits would end in an endless repetition."""
    steps = 10_000
    codes = [fresh("lattice", Stream(3, 0), 1), Code(0, 2**CODE_BITS)]
    for tokens in decode(codes, lambda _: torch.zeros(2), steps, seed=9):
        for part, deviations in ((tokens, 5), (tokens[-2000:], 5), (tokens[::2], 5)):
            assert abs(np.mean(part) - 0.5) < deviations * 0.5 / len(part) ** 0.5
        runs = sum(a != b for a, b in pairwise(tokens))
        assert abs(runs / (steps - 1) - 0.5) < 5 * 0.5 / steps**0.5


def test_a_certain_token_consumes_nothing_and_a_code_keeps_its_width() -> None:
    state, params = Codes(1), {"vocab_order": torch.zeros(1, dtype=torch.int64)}
    state._codes[0] = fresh("lattice", Stream(1, 0), 1)
    certain = torch.tensor([[-torch.inf, 3.0, -torch.inf]])
    for position in range(200):
        before = state._codes[0]
        logits = certain if position % 2 else torch.tensor([[0.0, 2.0, -9.0]])
        token = DRAW.pick(logits, params, rows_of([0], [position]), state)
        state.accept(torch.tensor([0]), token)
        after = state._codes[0]
        assert before and after and 0 <= after.x < after.width and 2**64 <= after.width <= 2**CODE_BITS
        assert position % 2 == 0 or (token.item() == 1 and after == before)


# --- against exact arithmetic


def edges(row: torch.Tensor) -> list[int]:
    """Cumulative weights of a row, from 0 on. An exponential that differs in its last bit would differ here."""
    return [0, *weights_of(row[None]).cumsum(1)[0].tolist()]


@pytest.mark.parametrize("model", [dyadic, smooth])
def test_weights_are_those_of_the_plain_draw(model: Any) -> None:
    for output in product(range(VOCABULARY), repeat=2):
        expected = quantise(model(output)[None].numpy())[0]
        assert np.abs(np.diff(edges(model(output))) - expected).max() <= 4


def rational(code: Code, model: Any, length: int, stream: Stream) -> Output:
    """The output of a code in exact fractions: nothing is rounded but the weights themselves.

    `units` is the width rounded as the coder does, which says when it appends words.
    """
    x, width, units = Fraction(code.x), Fraction(code.width), code.width
    output: Output = ()
    for position in range(length):
        upto = edges(model(output))
        token = max(i for i in range(len(upto) - 1) if width * upto[i] <= x * 2**BITS and upto[i] < upto[i + 1])
        x -= width * Fraction(upto[token], 2**BITS)
        width *= Fraction(upto[token + 1] - upto[token], 2**BITS)
        units = (units * upto[token + 1] >> BITS) - (units * upto[token] >> BITS)
        words = philox_reference((0, position, stream.choice, Purpose.CODE_BITS), (stream.key, 0))
        for word in words[:2]:
            if units < 2**64:
                x, width, units = x * 2**32 + word, width * 2**32, units * 2**32
        output = (*output, token)
    return output


@pytest.mark.parametrize(("model", "length"), [(smooth, 20), (halves, 500)])
def test_tokens_are_those_of_an_exact_decoder(model: Any, length: int) -> None:
    """Interval edges are rounded to 2^-64 of the interval or less, and each later bit doubles what that amounts to;
    where they need no rounding, the two agree for ever."""
    codes = [fresh("lattice", Stream(11, choice), 6) for choice in range(6)]
    outputs = decode(codes, model, length, seed=11)
    assert outputs == [rational(code, model, length, Stream(11, choice)) for choice, code in enumerate(codes)]


def interval(output: Output, model: Any) -> tuple[Fraction, Fraction]:
    """The codes in [0, 1) that decode to this output: the encoder."""
    low, size = Fraction(0), Fraction(1)
    for i, token in enumerate(output):
        upto = edges(model(output[:i]))
        low += size * Fraction(upto[token], 2**BITS)
        size *= Fraction(upto[token + 1] - upto[token], 2**BITS)
    return low, size


@pytest.mark.parametrize("model", [dyadic, smooth])
def test_encoding_what_a_code_decodes_to_contains_the_code(model: Any) -> None:
    codes = [fresh("iid", Stream(seed, 0), 1) for seed in range(300)]
    slack = Fraction(1, 2**90)  # edges are rounded down to a unit of the code's width
    for code, output in zip(codes, decode(codes, model, 9), strict=True):
        low, size = interval(output, model)
        assert low - slack <= Fraction(code.x, 2**CODE_BITS) < low + size


def test_intervals_of_all_outputs_tile_the_codes_in_order() -> None:
    at = Fraction(0)
    for output in product(range(VOCABULARY), repeat=2):
        low, size = interval(output, smooth)
        assert low == at
        at += size
    assert at == 1


# --- slots, batches, drafts


@pytest.mark.parametrize("fields", [{}, {"vocab_order": "seeded", "temperature": 1.3}, {"codebook": "sobol"}])
def test_batches_do_not_matter(fields: dict[str, Any]) -> None:
    together = request(smooth, 12, 4, length=40, **fields)
    alone = request(smooth, 12, 4, length=40, batches=[[i] for i in range(12)], **fields)
    mixed = request(smooth, 12, 4, length=40, batches=[[7, 3, 11, 0], [1, 2], [10, 9, 8, 6, 5, 4]], **fields)
    assert together == alone == mixed


def test_seeded_orders_of_a_step_are_made_at_once_and_stay_for_all_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    count, calls = 40, []

    def counted(*args: Any) -> Any:
        if args[-1] == Purpose.VOCAB_PERM:
            calls.append(args)
        return philox(*args)

    monkeypatch.setattr("samplers.arithmetic.philox", counted)
    chain = resolve({"draw": "arithmetic", "vocab_order": "seeded"}, VOCABULARY)
    stack = SamplerStack(count, VOCABULARY, torch.device("cpu"))
    for slot in range(count):
        stack.admit(slot, chain, seed=slot // 2, choice=slot % 2, prompt_ids=[0], n=2)
    rows = smooth(()).expand(count // 2, -1)
    for position in range(3):
        for choice in range(2):  # the choices of a request are in different blocks
            slots = np.arange(choice, count, 2)
            stack.sample(rows, slots, np.full(len(slots), position))
        assert len(calls) == position + 1


def admitted(n: int = 2, slots: int = 4) -> SamplerStack:
    stack = SamplerStack(slots, VOCABULARY, torch.device("cpu"))
    for choice in range(n):
        stack.admit(choice, resolve({"draw": "arithmetic"}, VOCABULARY), seed=8, choice=choice, prompt_ids=[0], n=n)
    return stack


def run(stack: SamplerStack, slot: int, first: int, length: int) -> list[int]:
    tokens = []
    for position in range(first, first + length):
        sampled = stack.sample(smooth((position % 3,))[None], np.array([slot]), np.array([position]))
        stack.accept(np.array([slot]), sampled.tokens)
        tokens.append(int(sampled.tokens[0]))
    return tokens


def test_snapshots_undo_and_forks_repeat_their_parent() -> None:
    stack = admitted()
    run(stack, 0, 0, 5)
    saved = stack.snapshot(0)
    expected = run(stack, 0, 5, 60)
    stack.restore(0, saved)
    stack.fork(0, 3)
    stack.fork(0, 2, seed=99, choice=0)
    other = run(stack, 1, 0, 30)
    assert run(stack, 3, 5, 60) == expected == run(stack, 0, 5, 60)
    apart = run(stack, 2, 5, 60)
    assert apart[:20] == expected[:20] and apart != expected  # its own words come below the code it was given
    assert other == run(admitted(), 1, 0, 30)


def test_a_token_that_was_not_picked_consumes_nothing() -> None:
    stack = admitted()
    sampled = stack.sample(smooth(())[None], np.array([0]), np.array([0]))
    before = stack.snapshot(0)
    other = (sampled.tokens + 1) % VOCABULARY
    stack.accept(np.array([0]), other)
    stack.accept(np.array([0]), other)  # nothing was picked at all
    (left,), (kept,) = stack.snapshot(0).states.values(), before.states.values()
    assert left[0] == kept[0]


def test_rows_of_drafts_equal_one_token_at_a_time() -> None:
    expected = run(admitted(), 0, 0, 9)
    stack = admitted()
    rows = torch.stack([smooth((position % 3,)) for position in range(9)])
    order = np.array([2, 0, 1, 3])  # rows of one step, in any order
    sampled = stack.sample(rows[order], np.zeros(4, np.int64), order)
    assert sampled.tokens.tolist() == [expected[i] for i in order]
    for token in expected[:3]:  # the fourth draft is rejected
        stack.accept(np.array([0]), torch.tensor([token]))
    again = stack.sample(rows[3:9], np.zeros(6, np.int64), np.arange(3, 9))
    assert again.tokens.tolist() == expected[3:]
    first, rest = (
        stack.sample(rows[part], np.zeros(3, np.int64), np.array(part)) for part in ([3, 4, 5], [6, 7, 8])
    )  # in two calls
    assert [*first.tokens.tolist(), *rest.tokens.tolist()] == expected[3:]
    siblings = stack.sample(rows[:2], np.zeros(2, np.int64), np.array([3, 3]))
    assert len(siblings.failures) == 2


def test_resumed_output_gets_a_code_of_its_own() -> None:
    """The old code is gone, and starting again from the first one would decode the first tokens once more."""
    count = 2000
    second = []
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    chain = resolve({"draw": "arithmetic"}, VOCABULARY)
    for seed in range(count):
        first = run_one(stack, chain, seed, [])
        if first == 1:
            second.append(run_one(stack, chain, seed, [first]))
    seen = Counter(second)
    expected = smooth(()).double().softmax(0).tolist()
    result = stats.chisquare([seen[i] for i in range(VOCABULARY)], [len(second) * p for p in expected])
    assert result.pvalue > 1e-6


def run_one(stack: SamplerStack, chain: Any, seed: int, output_ids: list[int]) -> int:
    stack.admit(0, chain, seed=seed, choice=0, prompt_ids=[0], output_ids=output_ids)
    return int(stack.sample(smooth(())[None], np.array([0]), np.array([len(output_ids)])).tokens[0])


def test_greedy_requests_do_not_touch_the_code() -> None:
    outputs = request(smooth, 5, 0, temperature=0)
    assert len(set(outputs)) == 1


@pytest.mark.parametrize("fields", [{"codebook": "halton"}, {"vocab_order": 1}, {"codebook": None, "vocab_order": "x"}])
def test_unknown_books_and_orders_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SamplerError, match="must be one of"):
        resolve({"draw": "arithmetic", **fields}, VOCABULARY)
    with pytest.raises(SamplerError, match="belongs to the draw 'arithmetic'"):
        resolve({"codebook": "sobol"}, VOCABULARY)
