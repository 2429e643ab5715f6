"""Covers against direct summation over enumerable sources: samplers.md section 14."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from server.text.codec import TextCodec
from server.text.covers import Covering
from tests.server.live import TINY
from tests.server.unit.boundary_models import Source, bpe, finder

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACE, LINE = "Ġ", "Ċ"
MERGES = [("a", "b"), ("b", "a"), ("ab", "a"), (SPACE, "a"), (SPACE + "a", "ba"), ("ba", "b"), ("a", "a")]
BLANKS = [
    (SPACE, SPACE), (SPACE, "a"), (LINE, LINE), (SPACE + SPACE, SPACE), (SPACE, LINE), (LINE, SPACE), ("a", "b"),
    (LINE + SPACE, SPACE),
]  # fmt: skip


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def every_text(letters: str, longest: int, seed: int = 0) -> dict[str, float]:
    """All texts up to a length, with random weights."""
    chance = random.Random(seed)
    texts = ["".join(t) for size in range(1, longest + 1) for t in itertools.product(letters, repeat=size)]
    return {text: chance.expovariate(1) for text in texts}


SOURCES = {
    "one_word": Source(bpe(MERGES, split_by("x")), every_text("ab", 8)),
    "words": Source(bpe(MERGES), every_text("ab ", 6)),
    "blanks": Source(bpe(BLANKS), every_text("a \n", 6)),
    "llama3_blanks": Source(bpe(BLANKS, split_by(LLAMA3)), every_text("a \n", 6)),
    "digits": Source(
        bpe([("1", "2"), ("2", "1"), ("12", "1"), ("1", "1")], split_by(r"\d{1,3}(?=(?:\d{3})*(?!\d))|\D+")),
        every_text("12a", 6),
    ),
    "characters": Source(
        bpe([("Ñ", "Ģ"), ("Ð", "°"), ("Ñ", "ģ"), (SPACE, "Ñ"), ("Ð", "±"), ("Ð°", "Ð±")]), every_text("рабс ", 5)
    ),
    "bytes": Source(bpe([]), every_text("ab ", 5)),
}  # fmt: skip


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Source:
    return SOURCES[request.param]


def some_prompts(source: Source, count: int = 40) -> list[list[int]]:
    """Tokens of texts, cut behind any token of them: with bytes inside characters too."""
    chance = random.Random(1)
    texts = chance.sample(sorted(source.law), min(count, len(source.law)))
    whole = [source.tokenizer.encode(text.decode()).ids for text in texts]
    return [ids[: chance.randint(1, len(ids))] for ids in whole]


def text_of(source: Source, ids: list[int]) -> bytes:
    return b"".join(source.find._vocabulary.pieces[token] for token in ids)


def first_stays(source: Source, ids: list[int]) -> bool:
    """No safe split: the first token is taken for certain, so the law is that of texts whose tokens begin with it."""
    return source.find.safe_split(ids) == 1 and not is_safe(source, ids, 1)


def is_safe(source: Source, ids: list[int], keep: int) -> bool:
    return source.find._is_fresh(ids, keep) or source.find._is_cut(ids, keep)


def test_weights_add_up_to_the_probability_of_the_string(source: Source) -> None:
    compared = 0
    for ids in some_prompts(source, 60):
        if len(ids) > 1 and not first_stays(source, ids):
            assert source.mass(ids) == pytest.approx(source.starting_with(text_of(source, ids)), rel=1e-12, abs=1e-300)
            compared += 1
    assert compared >= 5


def test_a_cover_is_one_of_the_ways_the_texts_are_written(source: Source) -> None:
    """Kept and cover together are exactly the shortest token prefixes that spell the prompt, for texts with its kept
    tokens."""
    for ids in some_prompts(source):
        covering = source.find.exact(ids)
        if not covering.end:
            continue
        size, kept = len(text_of(source, ids)), covering.kept
        seen = set()
        for text in source.law:
            written = tuple(source.tokenizer.encode(text.decode()).ids)
            if text.startswith(text_of(source, ids)) and written[: len(kept)] == kept:
                length, at = 0, 0
                while length < size:
                    length += len(text_of(source, [written[at]]))
                    at += 1
                seen.add(written[len(kept) : at])
        assert seen <= {cover.ids for cover in covering.covers}


def test_next_bytes_and_the_end_exhaust_a_string(source: Source) -> None:
    """Sum over a of P(x a) + P(x and no more) = P(x), each by its own covers."""
    for ids in some_prompts(source, 25):
        covering = source.find.exact(ids)
        if not covering.end:
            continue
        going_on = 0.0
        for letter in range(256):
            longer = [*ids, letter_id(source, letter)]
            # the longer prompt is re-read from the same place
            going_on += source.mass(longer, keep=len(covering.kept))
        whole = text_of(source, ids)
        ended = math.fsum(
            weight
            for text, weight in source.law.items()
            if text == whole
            and tuple(source.tokenizer.encode(text.decode()).ids)[: len(covering.kept)] == covering.kept
        )
        assert going_on + ended == pytest.approx(source.mass(ids), rel=1e-12, abs=1e-300)


def letter_id(source: Source, byte: int) -> int:
    return source.find._vocabulary.pieces.index(bytes([byte]))


def test_covers_are_unique_and_none_begins_with_another(source: Source) -> None:
    for ids in some_prompts(source):
        covers = [cover.ids for cover in source.find.exact(ids).covers]
        assert len(set(covers)) == len(covers)
        for one, other in itertools.permutations(covers, 2):
            assert one != other[: len(one)]


def test_the_mass_does_not_depend_on_where_the_prompt_was_split(source: Source) -> None:
    for ids in some_prompts(source):
        safe = source.find.safe_split(ids)
        masses = [source.mass(ids, keep) for keep in range(1, safe + 1) if keep == safe or is_safe(source, ids, keep)]
        assert masses == pytest.approx([masses[-1]] * len(masses), rel=1e-12, abs=1e-300)


def test_the_law_of_what_follows_is_that_of_strings_however_the_prompt_was_written() -> None:
    """The same text, as canonical tokens and as single bytes: the same covers behind the same text."""
    source = SOURCES["words"]
    for text in ("ab abab", "b ab", "a ba", "ab a"):
        canonical = source.find.exact(source.tokenizer.encode(text).ids)
        bytewise = source.find.exact([letter_id(source, byte) for byte in text.encode()])
        assert canonical.end == bytewise.end and canonical.covers == bytewise.covers


def test_single_bytes_have_one_cover_each() -> None:
    source = SOURCES["bytes"]
    for ids in some_prompts(source):
        covering = source.find.exact(ids)
        if len(ids) > 1:
            assert [(*covering.kept, *cover.ids) for cover in covering.covers] == [tuple(ids)]
            assert covering.covers[0].beyond == b""


def check_by_encoding(tokenizer: Tokenizer, covering: Covering, text: str) -> None:
    """Every cover whose text is whole characters is what the tokenizer makes of that text, or of a longer one."""
    kept = len(covering.kept)
    for cover in covering.covers:
        try:
            written = text + cover.beyond.decode()
        except UnicodeDecodeError:
            continue
        longer = [written + more for more in ("", "a", "é", "0", ".", "\n", "\né", " ", " a", " é", "00")]
        begun = [tokenizer.encode(one, add_special_tokens=False).ids[kept : kept + len(cover.ids)] for one in longer]
        assert list(cover.ids) in begun, cover


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec.load(TINY)


@pytest.mark.parametrize(
    "text",
    [
        "def ma", "x = foo(ba", "if x:\n    re", "a ", "a  ", "a \n", "import os\n\n", "don't", "1 + 12", "x='",
        "café s", "naïve 中", "é", "def f():\n\treturn self.", "emoji \U0001f600", "a\u00a0 b", "\u3000 x",
    ],
)  # fmt: skip
def test_covers_of_the_embedded_tokenizer_are_canonical(codec: TextCodec, text: str) -> None:
    find, ids = finder(codec.fast), codec.encode_plain(text)
    covering = find.exact(ids)
    assert find._vocabulary.joined(covering.kept) + covering.end == text.encode()
    if covering.end:
        check_by_encoding(codec.fast, covering, text)
        assert tuple(ids) in {covering.kept + cover.ids for cover in covering.covers}, "the prompt as sent"


@given(st.text(max_size=12), st.text(st.sampled_from("ab .\n'1é"), max_size=10))
@settings(max_examples=60, deadline=None)
def test_any_text_that_goes_on_is_covered(head: str, tail: str) -> None:
    """A longer text's own tokens begin with one of the covers of each of its beginnings."""
    if any("\ud800" <= char <= "\udfff" for char in head + tail) or "<|" in head:
        return
    ids, whole = CODEC.encode_plain("x " + head), CODEC.encode_plain("x " + head + tail)
    covering = FIND.exact(ids)
    if covering.end and whole[: len(covering.kept)] == list(covering.kept):
        assert sum(tuple(whole[len(covering.kept) :][: len(c.ids)]) == c.ids for c in covering.covers) == 1


CODEC = TextCodec.load(TINY)
FIND = finder(CODEC.fast)


def test_a_prompt_may_end_inside_a_character(codec: TextCodec) -> None:
    ids = codec.encode_plain("naïve 中")
    for cut in range(1, len(ids)):
        covering = FIND.exact(ids[:cut])
        assert b"".join(map(codec.token_bytes, (*covering.kept,))) + covering.end == b"".join(
            map(codec.token_bytes, ids[:cut])
        )
        rest = tuple(ids[len(covering.kept) :])
        assert not covering.end or any(rest[: len(cover.ids)] == cover.ids for cover in covering.covers)


def test_bytes_that_are_no_text_stay_as_they_are(codec: TextCodec) -> None:
    stray = codec.fast.token_to_id("©")  # the byte 0xA9, which begins no character
    ids = [*codec.encode_plain("def ma"), stray]
    assert FIND.exact(ids) == Covering(tuple(ids), b"", ())
    covering = FIND.exact([*codec.encode_plain("def f"), stray, *codec.encode_plain("ma")])
    assert covering.end == b"ma"


def test_special_tokens_are_hard_boundaries_and_never_covers(codec: TextCodec) -> None:
    ids = codec.encode_plain("hello<|user|>")
    assert FIND.exact(ids) == Covering(tuple(ids), b"", ()) == FIND.heal(ids)
    covering = FIND.exact(codec.encode_plain("hello<|user|>de"))
    assert covering.kept[-1] in codec.special_ids and covering.end == b"de"
    covering = FIND.exact(codec.encode_plain("a <"))
    assert covering.covers and not {cover.last for cover in covering.covers} & codec.special_ids


def test_the_first_token_stays_and_64_bytes_are_the_most_that_is_written_again() -> None:
    find = SOURCES["one_word"].find
    ids = SOURCES["one_word"].tokenizer.encode("ab" * 100).ids
    assert 60 <= len(text_of(SOURCES["one_word"], ids[find.safe_split(ids) :])) <= 64
    assert find.safe_split(ids[:3]) == 1
    assert find.exact(ids[:1]).end == b""


def test_heal_takes_one_token_back() -> None:
    source = SOURCES["words"]
    ids = source.tokenizer.encode("b ab").ids
    covering = source.find.heal(ids)
    pieces = source.find._vocabulary.pieces
    assert covering.kept == tuple(ids[:-1])
    assert {cover.last for cover in covering.covers} == {
        t for t, p in enumerate(pieces) if p.startswith(pieces[ids[-1]])
    }
    assert all(not cover.left and pieces[cover.last] == covering.end + cover.beyond for cover in covering.covers)


# --- SentencePiece


def sentencepiece() -> Tokenizer:
    """BPE over the whole text with a dummy space in front, characters it lacks as bytes."""
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b"), ("▁", "b"), ("b", "a"), ("▁", "▁")]
    letters = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "é"]
    tokens = [*letters, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(
        models.BPE(
            {token: at for at, token in enumerate(tokens)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True), AddedToken("<s>", special=True)])
    return tokenizer


SENTENCEPIECE = Source(sentencepiece(), every_text("abéя ", 5))


def test_sentencepiece_with_a_dummy_space_and_byte_fallback() -> None:
    compared = 0
    for ids in some_prompts(SENTENCEPIECE, 80):
        if len(ids) < 2 or first_stays(SENTENCEPIECE, ids):
            continue
        written = text_of(SENTENCEPIECE, ids)
        assert written.startswith(b" ")  # the dummy
        expected = SENTENCEPIECE.starting_with(written[1:])
        assert SENTENCEPIECE.mass(ids) == pytest.approx(expected, rel=1e-12, abs=1e-300), written
        compared += 1
    assert compared > 20


def test_bytes_of_a_character_the_vocabulary_has_are_no_cover() -> None:
    ids = SENTENCEPIECE.tokenizer.encode("a é").ids
    names = {SENTENCEPIECE.tokenizer.id_to_token(cover.last) for cover in SENTENCEPIECE.find.exact(ids).covers}
    assert "é" in names and "<0xA9>" not in names
