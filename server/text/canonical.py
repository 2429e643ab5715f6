"""A vocabulary by bytes, and the tokens a tokenizer gives to texts of which only the first bytes are fixed.

Knows tokens and bytes, nothing about models or requests. Works on bytes because both prompts and tokens may end inside
a character.
"""

from __future__ import annotations

import codecs
import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from tokenizers import Encoding, Tokenizer

from server.text.pieces import byte_alphabet, is_byte_level

# What pre-tokenizers look ahead at: a run of white space or of digits is cut according to what follows it. Tokens that
# reach into what follows are found in the vocabulary; these characters show the cut where none of them does.
LETTERS, NUMBERS, OTHERS = "aé中ሀꀀ𐐀", "0٣৩𝟎", ".¶⁂𐄀"
AFTER_DIGITS = ("0", "00", "a")
# A contraction may be a piece of its own or part of the word, and a word may go on from characters without case into
# upper case only if lower case follows.
CONTRACTIONS = [
    "".join(letters)
    for word in ("s", "t", "re", "ve", "m", "ll", "d")
    for letters in product(*((letter, letter.upper()) for letter in word))
]
LOWER = "a"
FURTHER = "a0./ \n"  # one of these goes on in any piece of text that can
Job = tuple[str, int]  # text, bytes to take away again
MANY = 64  # completions of a character to try where bytes cannot be merged one by one


class Vocabulary:
    """The tokens text consists of: those with bytes, special ones excluded."""

    def __init__(self, pieces: Sequence[bytes], excluded: Collection[int]) -> None:
        self.pieces = pieces
        self._ordinary = [bool(piece) and token not in excluded for token, piece in enumerate(pieces)]
        order = sorted((piece, token) for token, piece in enumerate(pieces) if self._ordinary[token])
        self._sorted, self._ids = [piece for piece, _ in order], [token for _, token in order]
        joined = np.frombuffer(b"\xff".join(self._sorted), np.uint8)  # 0xff occurs in no text
        self._inside = np.zeros((256, 256), bool)
        self._inside[joined[:-1], joined[1:]] = True

    def is_text(self, token: int) -> bool:
        return token < len(self._ordinary) and self._ordinary[token]

    def inside_a_token(self, left: int, right: int) -> bool:
        """Whether any token holds these two bytes side by side; where none does, every tokenization is cut."""
        return bool(self._inside[left, right])

    def starting_with(self, prefix: bytes) -> list[int]:
        """Tokens that begin with these bytes (at least one)."""
        low = bisect_left(self._sorted, prefix)
        kept = prefix.rstrip(b"\xff")
        high = bisect_left(self._sorted, kept[:-1] + bytes([kept[-1] + 1])) if kept else len(self._sorted)
        return self._ids[low:high]

    def joined(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.pieces[token] for token in ids)


@dataclass(frozen=True)
class Frame:
    """How to make the tokenizer read bytes as if they stood behind a context."""

    anchor: str = ""  # text in front
    anchor_ids: tuple[int, ...] = ()  # its tokens, which what follows must not change
    dropped: int = 0  # leading bytes that are a space the tokenizer itself puts in front of a text


class Reader:
    """Canonical tokens of bytes that begin a text."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
        self._fast = tokenizer
        self._vocabulary = vocabulary
        self._byte_level = is_byte_level(tokenizer)
        letter, number, other = map(self._loose, (LETTERS, NUMBERS, OTHERS))
        blanks = [a + b for a in ("", " ", "\n") for b in (" ", "\n")]
        self._after_blanks = (letter, number, other, *blanks, *(blank + letter for blank in blanks))
        self._letters = {byte: letter for letter, byte in byte_alphabet().items()}
        self._model, self._unmerged = tokenizer.model, frozenset[int]()
        if getattr(self._model, "ignore_merges", False):
            self._model = deepcopy(self._model)
            self._model.ignore_merges = False
            self._unmerged = self._without_merges()

    @property
    def is_exact(self) -> bool:
        """Whether words that are tokens only where they stand alone can be told from beginnings of longer ones."""
        return self._byte_level or not self._unmerged

    def _without_merges(self) -> frozenset[int]:
        """Tokens that merges do not make: words that are written so as a whole, and otherwise as beginnings."""
        tokens = range(len(self._vocabulary.pieces))
        ordinary = [token for token in tokens if self._vocabulary.is_text(token)]
        words = ((token, self._fast.id_to_token(token)) for token in ordinary)
        return frozenset(token for token, word in words if [one.id for one in self._model.tokenize(word)] != [token])

    def _loose(self, characters: str) -> str:
        """The first of them that no token joins to a space before it."""
        for char in characters:
            ids = self._fast.encode("a " + char, add_special_tokens=False).ids
            if any(self._vocabulary.joined(ids[at:]) == char.encode() for at in range(len(ids))):
                return char
        return characters[0]

    def frame(self, before: str, data: bytes) -> Frame | None:
        """A frame in which `data` is read as behind the text `before`, or at least as itself."""
        text, pending = decoded(data) or ("", b"")
        if pending:
            text += completions(pending)[0]
        whole = text.encode()
        for anchor, dropped in ((before, 0), ("", 0), ("", 1)):
            if dropped and not whole.startswith(b" "):
                continue
            ids = self._fast.encode(anchor + text[dropped:], add_special_tokens=False).ids
            for at in range(len(ids) + 1 if anchor else 1):
                if self._vocabulary.joined(ids[at:]) == whole:
                    return Frame(anchor, tuple(ids[:at]), dropped)
        return None

    def read(self, texts: Sequence[bytes], frame: Frame) -> Iterator[list[int]]:
        """Tokens of each text, and of some longer ones where what follows decides how it is cut: for every text at
        least those it has as a whole text, if it can be one."""
        jobs = [job for data in texts for job in self._jobs(data)]
        skip = len(frame.anchor_ids)
        whole_words: list[Job] = []
        for job, one in self._encode(jobs, frame):
            ids = self._shortened(one, job[1]) if job[1] else one.ids
            if tuple(ids[:skip]) == frame.anchor_ids:
                yield ids[skip:]
            if not job[1] and ids[-1] in self._unmerged:
                whole_words += [(job[0] + char, 1) for char in FURTHER]
        for (_, cut), one in self._encode(whole_words, frame):
            ids = self._shortened(one, cut)
            if tuple(ids[:skip]) == frame.anchor_ids:
                yield ids[skip:]

    def _jobs(self, data: bytes) -> Iterator[Job]:
        parts = decoded(data)
        if parts is None:
            return
        text, pending = parts
        if pending and self._byte_level:
            yield from ((text + char, len(char.encode()) - len(pending)) for char in representatives(pending))
        elif pending:
            yield from ((text + char, 0) for char in completions(pending))
        else:
            yield text, 0
            last = text[-1:]
            if last.isspace():
                yield from ((text + follower, 0) for follower in self._after_blanks)
            elif last.isdigit():
                yield from ((text + follower, 0) for follower in AFTER_DIGITS)
            elif "'" in text[-2:]:
                begun = text[text.rindex("'") + 1 :]
                rests = (word[len(begun) :] for word in CONTRACTIONS if word.startswith(begun))
                yield from ((text + rest, 0) for rest in rests if rest)
            if self._byte_level and (last.isupper() or last.istitle()) and not text.isascii():
                yield text + LOWER, 1

    def _encode(self, jobs: Sequence[Job], frame: Frame) -> Iterator[tuple[Job, Encoding]]:
        texts = [frame.anchor + text[frame.dropped :] for text, _ in jobs]
        return zip(jobs, self._fast.encode_batch(texts, add_special_tokens=False), strict=True)

    def _shortened(self, encoded: Encoding, cut: int) -> list[int]:
        """The tokens without the last bytes: these were only there to let the pre-tokenizer see a character. The last
        pre-token is merged again from what is left of it."""
        ids, words = encoded.ids, encoded.word_ids
        first = len(ids) - 1
        while first and words[first - 1] == words[-1]:
            first -= 1
        left = self._vocabulary.joined(ids[first:])[:-cut]
        merged = self._model.tokenize("".join(self._letters[byte] for byte in left)) if left else []
        return ids[:first] + [token.id for token in merged]


def decoded(data: bytes) -> tuple[str, bytes] | None:
    """(text, the bytes of an incomplete character at its end), or None where the bytes begin no text."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    try:
        return decoder.decode(data), decoder.getstate()[0]
    except UnicodeDecodeError:
        return None


@cache
def completions(pending: bytes) -> tuple[str, ...]:
    """Up to `MANY` characters whose first bytes these are."""
    every = list(_characters(pending))
    return tuple(every[:: max(1, len(every) // MANY)][:MANY])


@cache
def representatives(pending: bytes) -> tuple[str, ...]:
    """Of the characters whose first bytes these are, one of each class pre-tokenizers tell apart."""
    classes = {unicodedata.category(char)[0]: char for char in _characters(pending)}
    return tuple(classes[name] for name in sorted(classes))


def _characters(pending: bytes) -> Iterator[str]:
    lead = pending[0]
    missing = (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4) - len(pending)
    # the last byte takes all values, the others a few: neighbouring blocks of Unicode are of one kind
    ranges = [range(0x80, 0xC0, 1 if place == missing - 1 else 4) for place in range(missing)]
    for tail in product(*ranges):
        parts = decoded(pending + bytes(tail))
        if parts is not None:
            yield parts[0]
