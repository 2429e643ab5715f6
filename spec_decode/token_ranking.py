"""Which tokens a draft model needs most: counts over texts, in order (FR-Spec, arXiv 2502.14856; spec_decode.md 6.2).

Made once, offline, for one tokenizer. Tokens that no text can do without are kept whatever their counts: special ones,
which counts over plain text never see, and single bytes, which spell everything else.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spec_decode.draft_vocabulary import DraftVocabulary

Ints = NDArray[np.int64]
_FORMAT = "drafthouse token ranking 1"


class RankingError(ValueError):
    """A file holds no ranking, or that of another tokenizer; or a subset has no room for the tokens that are kept."""


def count_tokens(texts: Iterable[str], encode: Callable[[str], Sequence[int]], vocabulary: int) -> Ints:
    """[vocabulary] occurrences. encode: without special tokens, which would count texts. Raises ValueError for an id
    outside of the vocabulary."""
    counts = np.zeros(vocabulary, np.int64)
    for text in texts:
        found = np.bincount(np.asarray(encode(text), np.int64), minlength=vocabulary)
        if len(found) > vocabulary:
            raise ValueError(f"a token id is not in [0, {vocabulary})")
        counts += found
    return counts


def needed_tokens(pieces: Sequence[bytes], special_ids: Collection[int]) -> frozenset[int]:
    """Special tokens and those of a single byte. pieces: what each token id stands for."""
    return frozenset(special_ids) | {token for token, piece in enumerate(pieces) if len(piece) == 1}


@dataclass(frozen=True, eq=False)
class TokenRanking:
    """All tokens of a tokenizer, the most needed ones first."""

    fingerprint: str  # of the tokenizer
    ids: Ints  # [vocabulary]: those that are kept in rising order, then the frequent ones, ties to the lower id
    counts: Ints  # [vocabulary] of each of them
    kept: int  # how many are in every subset

    @classmethod
    def of(cls, counts: Ints, kept: Collection[int], fingerprint: str) -> TokenRanking:
        """counts: [vocabulary]; kept: ids."""
        rest = np.ones(len(counts), bool)
        rest[list(kept)] = False
        ids = np.lexsort((-counts, rest))
        first = np.sort(ids[: len(kept)])
        ids = np.concatenate([first, ids[len(kept) :]])
        return cls(fingerprint, ids, counts[ids], len(kept))

    def subset(self, size: int) -> DraftVocabulary:
        """The `size` most needed tokens. Raises RankingError."""
        if not self.kept <= size <= len(self.ids):
            raise RankingError(f"a subset must have {self.kept} to {len(self.ids)} tokens, got {size}")
        return DraftVocabulary(np.sort(self.ids[:size]), len(self.ids))

    def coverage(self, size: int) -> float:
        """Share of all occurrences that fall on the first `size` tokens; 0 if nothing was counted."""
        return float(self.counts[:size].sum() / max(self.counts.sum(), 1))

    def check(self, vocabulary: int, fingerprint: str) -> None:
        """Raises RankingError if it was made with another tokenizer."""
        if (vocabulary, fingerprint) != (len(self.ids), self.fingerprint):
            raise RankingError(
                f"this ranking is of another tokenizer ({len(self.ids)} tokens; the model's has {vocabulary})"
            )

    def save(self, path: Path) -> None:
        """Write one .npz. Raises OSError."""
        with path.open("wb") as file:
            np.savez(
                file,
                format=np.array(_FORMAT),
                fingerprint=np.array(self.fingerprint),
                ids=self.ids,
                counts=self.counts,
                kept=np.array(self.kept),
            )

    @classmethod
    def load(cls, path: Path) -> TokenRanking:
        """Read a file of `save`. Raises RankingError or OSError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["format"]) != _FORMAT:
                    raise ValueError("another format")
                found = cls(str(file["fingerprint"]), file["ids"], file["counts"], int(file["kept"]))
            ids = found.ids
            if ids.shape != found.counts.shape or not np.array_equal(np.sort(ids), np.arange(len(ids))):
                raise ValueError("not every token has one place")
        except (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise RankingError(f"{path} holds no ranking of tokens") from error
        return found
