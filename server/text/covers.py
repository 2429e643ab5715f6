"""Which tokens can stand at the end of a prompt that is meant as a string.

A prompt's tokens say more than its text: that no longer token went on from there. So its end is taken back to a place
where every tokenization is cut, and *covers* are listed instead: the beginnings of canonical token sequences that are
just long enough to spell it. A string begins with the prompt exactly if its tokens begin with one of its covers, and no
cover begins with another, so their probabilities add up to the prompt's (arXiv 2406.16829, 2410.09303, 2506.14123).

Knows tokens and bytes; probabilities come from whoever asked. Knows nothing about requests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

from tokenizers import Tokenizer

from server.text.canonical import Frame, Reader, Vocabulary, decoded

LONGEST = 64  # bytes at the end of a prompt that are written anew, at most
NEAR = 4  # tokens before a split that are looked at: enough for any character
LINE_ENDS = b"\r\n"
BLANKS = b" \t" + LINE_ENDS
REMEMBERED = 8  # ends of prompts; behind a mere space half a vocabulary can follow
Context = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cover:
    """One way to write the end of a prompt: `left` spells a proper prefix of it, `last` the rest and perhaps more."""

    left: Context
    last: int
    beyond: bytes  # what `last` adds to the prompt

    @property
    def ids(self) -> Context:
        return (*self.left, self.last)


@dataclass(frozen=True)
class Covering:
    """A prompt, its end replaced by all covers of it."""

    kept: Context  # leading tokens of the prompt; at least one, for the first token of a text has no probability
    end: bytes  # the text of the others; empty where the prompt ends in a special token
    covers: tuple[Cover, ...]  # in ascending order of their ids; none where `end` is empty

    def questions(self) -> dict[Context, list[int]]:
        """The probabilities that weights are made of: which next tokens, after which tokens behind `kept`."""
        asked: dict[Context, set[int]] = {}
        for cover in self.covers:
            for at, token in enumerate(cover.ids):
                asked.setdefault(cover.ids[:at], set()).add(token)
        return {context: sorted(asked[context]) for context in sorted(asked, key=lambda one: (len(one), one))}

    def log_weights(self, answers: Mapping[Context, Mapping[int, float]]) -> list[float]:
        """ln P(left, last | kept) of each cover, from ln P of every token asked for."""
        return [sum(answers[one.ids[:at]][token] for at, token in enumerate(one.ids)) for one in self.covers]


class CoverFinder:
    """Lists covers in one tokenizer. Calls may come from several threads."""

    def __init__(self, tokenizer: Tokenizer, pieces: Sequence[bytes], excluded: Collection[int]) -> None:
        """`pieces` are the bytes of every token; `excluded` those that are not text."""
        self._vocabulary = Vocabulary(pieces, excluded)
        self._reader = Reader(tokenizer, self._vocabulary)
        self.is_exact = self._reader.is_exact
        self._enumerate = lru_cache(REMEMBERED)(self._enumerate_anew)

    def exact(self, ids: Sequence[int], keep: int | None = None) -> Covering:
        """The covers of a prompt's end; `keep` says how many tokens stay instead of the last safe split."""
        keep = self.safe_split(ids) if keep is None else keep
        end = self._vocabulary.joined(ids[keep:])
        if not end:
            return Covering(tuple(ids), b"", ())
        found = (self._enumerate(frame, end) for frame in self._frames(ids, keep, end))
        covers = next(filter(None, found), (self._as_sent(ids[keep:]),))
        ends = zip(covers[0].left, covers[-1].left, strict=False)  # covers are in order: what these share, all do
        shared = tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], ends))  # needs no weighing
        return Covering(
            kept=(*ids[:keep], *shared),
            end=end[len(self._vocabulary.joined(shared)) :],
            covers=tuple(Cover(cover.left[len(shared) :], cover.last, cover.beyond) for cover in covers),
        )

    def heal(self, ids: Sequence[int]) -> Covering:
        """The last token replaced by every token that begins with its bytes: one-token covers, canonical or not."""
        if len(ids) < 2 or not self._vocabulary.is_text(ids[-1]):
            return Covering(tuple(ids), b"", ())
        pieces = self._vocabulary.pieces
        end = pieces[ids[-1]]
        covers = (Cover((), token, pieces[token][len(end) :]) for token in self._vocabulary.starting_with(end))
        return Covering(tuple(ids[:-1]), end, _in_order(covers))

    def safe_split(self, ids: Sequence[int]) -> int:
        """How many leading tokens stay: up to the last place where reading begins afresh; failing that within `LONGEST`
        bytes, up to the first that no token bridges, else as few as that allows, and those are taken for certain."""
        keep = self._back(ids, len(ids), 1)
        while keep < len(ids) and decoded(self._vocabulary.joined(ids[keep:])) is None:
            keep += 1  # bytes that are no text, or half a character: they stay as they are
        return keep

    def _back(self, ids: Sequence[int], end: int, lowest: int) -> int:
        at, size, cut = end, 0, 0
        while at > lowest and self._vocabulary.is_text(ids[at - 1]):
            size += len(self._vocabulary.pieces[ids[at - 1]])
            if size > LONGEST:
                break
            at -= 1
            if self._is_fresh(ids, at):
                return at
            if self._is_cut(ids, at):
                cut = at
        return cut or at

    def _frames(self, ids: Sequence[int], keep: int, end: bytes) -> Iterator[Frame]:
        """How to have `end` read as behind `keep` tokens, best first. Text is cut from left to right, so what came
        before a fresh beginning does not matter; behind any other split the tokens since the last one have to stay."""
        if self._is_fresh(ids, keep):
            before = self._last_character(ids, keep)  # only keeps the tokenizer from adding a space
        else:
            near = tuple(ids[self._back(ids, keep, 0) : keep])
            before = self._vocabulary.joined(near).decode("utf-8", "ignore")
            yield Frame(before, near)
        frame = self._reader.frame(before, end)
        if frame is not None:
            yield frame

    def _is_fresh(self, ids: Sequence[int], at: int) -> bool:
        """Whether a piece of text begins behind these tokens whatever follows, so that neither side changes how the
        other is read: behind a special token, or at white space behind something else. A line end may still belong to
        punctuation before it, and no white space begins a piece where some token joins it to what is before."""
        if at == 0 or not self._vocabulary.is_text(ids[at - 1]):
            return True
        first, last = self._vocabulary.pieces[ids[at]][0], self._last_character(ids, at)
        if first not in BLANKS or not last or last.isspace() or (first in LINE_ENDS and not last.isalnum()):
            return False
        return self._is_cut(ids, at)

    def _is_cut(self, ids: Sequence[int], at: int) -> bool:
        """Whether no token goes across, and no piece that is cut by what follows ends here."""
        last, first = self._vocabulary.pieces[ids[at - 1]][-1], self._vocabulary.pieces[ids[at]][0]
        if self._vocabulary.inside_a_token(last, first) or 0x80 <= first < 0xC0:
            return False
        return not self._last_character(ids, at).isspace()

    def _last_character(self, ids: Sequence[int], at: int) -> str:
        return self._vocabulary.joined(ids[max(0, at - NEAR) : at])[-4:].decode("utf-8", "ignore")[-1:]

    def _as_sent(self, ids: Sequence[int]) -> Cover:
        """The end as it is, where the tokenizer would write it in no way (ids that spell what it cannot)."""
        return Cover(tuple(ids[:-1]), ids[-1], b"")

    def _enumerate_anew(self, frame: Frame, end: bytes) -> tuple[Cover, ...]:
        """Every cover's text is `end` and what one token adds to it; whatever the tokenizer makes of these texts begins
        with a cover, and each cover is met with its own text at least."""
        pieces = self._vocabulary.pieces
        texts = {end}
        for at in range(len(end)):
            texts.update(end + pieces[t][len(end) - at :] for t in self._vocabulary.starting_with(end[at:]))
        found = {self._beginning(ids, end) for ids in self._reader.read(sorted(texts), frame)}
        return _in_order(cover for cover in found if cover is not None)

    def _beginning(self, ids: Sequence[int], end: bytes) -> Cover | None:
        """As many of the tokens as it takes to spell `end`."""
        spelled = 0
        for at, token in enumerate(ids):
            if not self._vocabulary.is_text(token):
                return None
            piece = self._vocabulary.pieces[token]
            part = end[spelled : spelled + len(piece)]
            if not piece.startswith(part):
                return None
            spelled += len(piece)
            if spelled >= len(end):
                return Cover(tuple(ids[:at]), token, piece[len(part) :])
        return None


def _in_order(covers: Iterable[Cover]) -> tuple[Cover, ...]:
    return tuple(sorted(covers, key=lambda cover: cover.ids))
