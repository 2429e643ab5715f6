"""How often short sequences of tokens occur in a collection of texts: exact counts, as sorted arrays.

A trie without pointers. The n-grams of one order are numbered in the order of their keys, and the key of an n-gram is
(number of its first n - 1 tokens) * vocabulary + last token; a single token's number is its id. What continues a
context is therefore one stretch of the next order's keys, found by two bisections. Knows nothing about text.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LOWEST, HIGHEST = 2, 6  # orders
NOWHERE = -1  # no token, or the number of an n-gram that does not occur
_FORMAT = "drafthouse n-grams 2"
_ARRAYS = ("keys", "ends")  # of every order, in a file
# of the header in front of a zip member's content, in bytes: up to the name, the field of 64-bit sizes; id of a padding
_HEADER, _ZIP64_FIELD, _PADDING = 30, 20, (0xD935).to_bytes(2, "little")


class NgramError(ValueError):
    """A file holds no n-gram tables, or those of another tokenizer."""


@dataclass(frozen=True, eq=False)
class Level:
    """The n-grams of one order."""

    keys: Ints  # [N], rising
    ends: Ints  # [N + 1], ends[i] the occurrences of the first i n-grams together

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def counts(self) -> Ints:
        """[N] occurrences of each."""
        return np.diff(self.ends)


@dataclass(frozen=True, eq=False)
class NgramTables:
    """Counts of the n-grams of order 2 and up."""

    vocabulary: int  # token ids are below it
    fingerprint: str  # of the tokenizer
    levels: tuple[Level, ...]  # of order 2, 3, ...

    @property
    def orders(self) -> tuple[int, ...]:
        return tuple(range(LOWEST, LOWEST + len(self.levels)))

    def probability(self, contexts: Ints, candidates: Ints, weights: Sequence[float]) -> Floats:
        """sum over n of weights[n - 2] * count(last n - 1 tokens of the context, candidate) / count(those tokens).

        contexts: [K, L] the last tokens of each text, NOWHERE in front of a short one, L at least the longest order
        less one; candidates: [M]; weights: of order 2, 3, ..., as many as there are orders or fewer. Returns [K, M]. A
        context that does not occur adds 0; a context's count is that of all its continuations.
        """
        total = np.zeros((len(contexts), len(candidates)))
        for order, weight in zip(self.orders, weights, strict=False):
            level = self.levels[order - LOWEST]
            parents = self._numbers(contexts[:, contexts.shape[1] - order + 1 :])
            found = self._find(level, parents[:, None], candidates[None, :])
            counts = np.where(found >= 0, level.ends[found + 1] - level.ends[found], 0)
            first = np.searchsorted(level.keys, parents * self.vocabulary)
            last = np.searchsorted(level.keys, (parents + 1) * self.vocabulary)
            every = np.where(parents >= 0, level.ends[last] - level.ends[first], 0)
            total += weight * counts / np.maximum(every, 1)[:, None]
        return total

    def check(self, vocabulary: int, fingerprint: str) -> None:
        """Raises NgramError if they were made with another tokenizer."""
        if (vocabulary, fingerprint) != (self.vocabulary, self.fingerprint):
            raise NgramError(
                f"these n-grams are of another tokenizer ({self.vocabulary} tokens; the model's has {vocabulary})"
            )

    def save(self, path: Path) -> None:
        """Write one .npz. Raises OSError."""
        facts = {"format": _FORMAT, "fingerprint": self.fingerprint, "vocabulary": self.vocabulary}
        arrays = {name: np.array(fact) for name, fact in facts.items()}
        levels = zip(self.orders, self.levels, strict=True)
        arrays |= {f"{name}_{order}": getattr(level, name) for order, level in levels for name in _ARRAYS}
        with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                member = _aligned(f"{name}.npy", file.tell())
                with archive.open(member, "w", force_zip64=True) as content:
                    np.lib.format.write_array(content, array, (1, 0), allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> NgramTables:
        """Map a file of `save` into memory: it is read where it is looked at. Raises NgramError or OSError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["format"]) != _FORMAT:
                    raise NgramError(f"{path} is of another version; make it again with 'drafthouse index'")
                vocabulary, fingerprint = int(file["vocabulary"]), str(file["fingerprint"])
                orders = (len(file.files) - 3) // len(_ARRAYS)
            arrays = _mapped(path)
            levels = [Level(*(arrays[f"{name}_{LOWEST + i}"] for name in _ARRAYS)) for i in range(orders)]
            if any(len(level.ends) != len(level) + 1 for level in levels):
                raise ValueError("lengths do not fit")
        except NgramError:
            raise
        except (AttributeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise NgramError(f"{path} holds no n-grams of 'drafthouse index'") from error
        return cls(vocabulary, fingerprint, tuple(levels))

    def _numbers(self, tokens: Ints) -> Ints:
        """Numbers [K] of the n-grams tokens [K, n]."""
        first = tokens[:, 0]
        numbers = np.where(first < self.vocabulary, first, NOWHERE)
        for level, column in zip(self.levels, tokens.T[1:], strict=False):
            numbers = self._find(level, numbers, column)
        return numbers

    def _find(self, level: Level, parents: Ints, tokens: Ints) -> Ints:
        """Numbers of the n-grams (parent, token); the two broadcast."""
        known = (parents >= 0) & (tokens >= 0) & (tokens < self.vocabulary)
        keys = np.where(known, parents * self.vocabulary + tokens, NOWHERE)
        at = np.searchsorted(level.keys, keys)
        known &= at < len(level)
        known[known] = level.keys[at[known]] == keys[known]
        return np.where(known, at, NOWHERE)


def _aligned(name: str, start: int) -> zipfile.ZipInfo:
    """A member whose content lies at a multiple of 64 bytes, if its header lies at `start`.

    Bisection would copy a whole vector that is not aligned, each time. Zip's way to move a content is a field of zeros
    in the header: https://developer.android.com/tools/zipalign.
    """
    member = zipfile.ZipInfo(name)
    fixed = start + _HEADER + len(name) + _ZIP64_FIELD + 4
    member.extra = _PADDING + (-fixed % 64).to_bytes(2, "little") + bytes(-fixed % 64)
    return member


def _mapped(path: Path) -> dict[str, Ints]:
    """The int64 vectors of an uncompressed .npz, each as a window onto the file."""
    arrays = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            # the last four bytes before the name are the lengths of the name and of what stands behind it
            file.seek(member.header_offset + _HEADER - 4)
            file.seek(int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little"), 1)
            if np.lib.format.read_magic(file) != (1, 0):
                raise NgramError(f"{path} was not written by 'drafthouse index'")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype == np.int64 and len(shape) == 1:
                window = np.memmap(file, dtype, "r", file.tell(), shape) if shape[0] else np.empty(0, np.int64)
                arrays[member.filename.removesuffix(".npy")] = np.asarray(window)
    return arrays
