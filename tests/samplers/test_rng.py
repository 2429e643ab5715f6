"""Known answers of the counter-based generator, and the independence it promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from samplers.rng import DrawBits, Noise, Purpose, Stream, child, philox, philox_reference

ALL_ONES = (2**32 - 1,) * 4


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (ALL_ONES, (2**32 - 1, 2**32 - 1), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert philox_reference(counter, key) == words


def test_our_known_answers() -> None:
    assert philox_reference((0, 0, 0, Purpose.DRAW), (42, 0)) == (0x20439B04, 0x9807E022, 0x5419FA3F, 0xC8FA5A2D)
    noise = Noise(np.array([42, 42, 42, -1]), np.array([0, 0, 1, 0]), np.array([0, 1, 0, 0]))
    expected = [0.12603157865672154, 0.272125548980226, 0.3018352183892129, 0.23717241482888018]
    assert noise.uniform(Purpose.DRAW).tolist() == expected
    assert child(Stream(42, 0), 7, 1).key & (2**64 - 1) == 0xE4F0F92A642B53F8


def test_child_zero_is_its_parent_and_the_others_differ() -> None:
    parent = Stream(5, 3)
    assert child(parent, 4, 0) == parent
    others = {child(parent, position, ordinal) for position in range(5) for ordinal in range(1, 5)}
    assert len(others) == 20 and parent not in others


def test_vectorised_blocks_equal_the_reference() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(-(2**63), 2**63 - 1, 200)
    choices, positions, lanes = (rng.integers(0, 2**32, 200) for _ in range(3))
    words = philox(keys, choices, positions, lanes, Purpose.NOISE)
    for i in range(200):
        key = int(keys[i]) & (2**64 - 1)
        counter = (int(lanes[i]), int(positions[i]), int(choices[i]), int(Purpose.NOISE))
        assert tuple(int(word[i]) for word in words) == philox_reference(counter, (key & 0xFFFFFFFF, key >> 32))


def test_a_row_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(1)
    keys, choices, positions = rng.integers(0, 99, 30), rng.integers(0, 9, 30), rng.integers(0, 500, 30)
    whole = Noise(keys, choices, positions)
    order = rng.permutation(30)
    assert whole.bits(Purpose.DRAW)[order].tolist() == whole[order].bits(Purpose.DRAW).tolist()
    assert whole.per_token(Purpose.NOISE, 11)[order].tolist() == whole[order].per_token(Purpose.NOISE, 11).tolist()


def test_uniforms_are_uniform_and_purposes_independent() -> None:
    count = 40_000
    noise = Noise(np.full(count, 7), np.zeros(count, int), np.arange(count))
    draw, accept = noise.uniform(Purpose.DRAW), noise.uniform(Purpose.ACCEPT)
    assert draw.min() > 0 and draw.max() < 1
    assert stats.kstest(draw, "uniform").pvalue > 1e-6
    pairs, _, _ = np.histogram2d(draw, accept, bins=8, range=[[0, 1], [0, 1]])
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-6


def test_bits_made_ahead_are_the_same_bits() -> None:
    rng = np.random.default_rng(2)
    keys, choices = rng.integers(0, 99, 6), rng.integers(0, 9, 6)
    ahead = DrawBits(6)
    for step in range(300):
        slots = np.sort(rng.choice(6, rng.integers(1, 7), replace=False))
        if step % 50 == 0:
            keys[slots[0]] += 1
            ahead.forget(int(slots[0]))
        positions = rng.integers(0, 400, len(slots))
        given = ahead(slots, keys[slots], choices[slots], positions)
        assert given.tolist() == Noise(keys[slots], choices[slots], positions).bits(Purpose.DRAW).tolist()
    slots, positions = np.array([2, 2, 2, 4]), np.array([63, 64, 65, 7])
    given = ahead(slots, keys[slots], choices[slots], positions)
    assert given.tolist() == Noise(keys[slots], choices[slots], positions).bits(Purpose.DRAW).tolist()
