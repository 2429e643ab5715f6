"""Pieces, detokenizers and the codec, with the embedded tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from server.text.codec import TemplateError, TextCodec
from server.text.detokenize import PieceDetokenizer, WindowDetokenizer
from server.text.pieces import piece_table
from tests.server.live import TINY


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec.load(TINY)


CODEC = TextCodec.load(TINY)
# ids of single bytes make broken UTF-8 likely
BYTE_IDS = [CODEC.fast.token_to_id(char) for char in pre_tokenizers.ByteLevel.alphabet()]
ids = st.lists(st.one_of(st.integers(0, 4095), st.sampled_from(BYTE_IDS)), max_size=30)


@given(ids)
@settings(max_examples=500)
def test_incremental_text_is_exactly_what_the_tokenizer_decodes(tokens: list[int]) -> None:
    whole = CODEC.fast.decode(tokens, skip_special_tokens=False)
    for detokenizer in (
        PieceDetokenizer(piece_table(CODEC.fast) or []),
        WindowDetokenizer(lambda some: CODEC.fast.decode(some, skip_special_tokens=False)),
    ):
        parts = [detokenizer.feed(token) for token in tokens]
        if isinstance(detokenizer, PieceDetokenizer) or "\ufffd" not in whole:
            assert "".join(parts) + detokenizer.finish() == whole
    assert CODEC.decode(tokens) == whole


@given(st.text(max_size=60))
def test_no_character_is_split(text: str) -> None:
    if any("\ud800" <= char <= "\udfff" for char in text):
        return
    tokens = CODEC.encode_plain(text)
    detokenizer = CODEC.detokenizer()
    parts = [detokenizer.feed(token) for token in tokens]
    if "\ufffd" not in text:
        assert all("\ufffd" not in part for part in parts)
    assert "".join(parts) + detokenizer.finish() == text
    assert b"".join(map(CODEC.token_bytes, tokens)) == text.encode()


@given(st.text(max_size=60))
def test_lead_points_at_the_character_of_a_tokens_first_byte(text: str) -> None:
    if any("\ud800" <= char <= "\udfff" for char in text):
        return
    detokenizer, seen, raw = CODEC.detokenizer(), 0, b""
    for token in CODEC.encode_plain(text):
        assert seen + detokenizer.lead(token) == len(raw.decode("utf-8", "ignore"))
        seen += len(detokenizer.feed(token))
        raw += CODEC.token_bytes(token)


def test_invalid_byte_before_a_letter_counts_as_a_character() -> None:
    euro, letter = CODEC.fast.token_to_id("â"), CODEC.encode_plain("a")[0]  # the first byte of three, then a letter
    detokenizer = CODEC.detokenizer()
    assert detokenizer.feed(euro) == ""
    assert detokenizer.lead(letter) == 1
    assert detokenizer.feed(letter) == "\ufffda"


def test_sentencepiece_like_vocabularies_have_pieces() -> None:
    vocabulary = {"<unk>": 0, "▁the": 1, "▁": 2, "<0xC3>": 3, "<0xA9>": 4, "s": 5}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    table = piece_table(tokenizer)
    assert table is not None
    detokenizer = PieceDetokenizer(table)
    assert [detokenizer.feed(token) for token in (1, 3, 4, 5)] == [" the", "", "é", "s"]
    codec = TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    for ids in ([1, 5], [5, 1], [2, 2, 5], [2], []):
        assert codec.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)


def test_metaspace_decoders_put_no_space_in_front() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"▁the": 0, "▁": 1, "s": 2}, merges=[]))
    for scheme in ("always", "first", "never"):
        tokenizer.decoder = decoders.Metaspace("▁", scheme)
        codec = TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
        for ids in ([0, 0], [2, 0], [1, 0]):
            assert codec.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False), (scheme, ids)


def test_vocabularies_whose_text_depends_on_neighbours_have_none() -> None:
    tokenizer = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "play": 1, "##ing": 2, "now": 3}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    assert piece_table(tokenizer) is None
    detokenizer = WindowDetokenizer(lambda some: tokenizer.decode(some, skip_special_tokens=False))
    assert "".join(map(detokenizer.feed, [1, 2, 3])) == "playing now"


async def test_encoding_counts_what_the_tokenizer_added(codec: TextCodec) -> None:
    encoded = await codec.encode("a <|user|> b", add_special_tokens=True)
    assert encoded.added == 0 and 3 in encoded.ids
    assert (await codec.encode("x" * 30_000, True)).ids  # tokenized in a thread


def test_length_bound_is_never_wrong(codec: TextCodec) -> None:
    text = "    " * 200
    tokens = len(codec.encode_plain(text))
    assert not codec.surely_longer_than(text, tokens)
    assert codec.surely_longer_than("x" * 10_000, 10)


def render(codec: TextCodec, *messages: dict[str, object], **options: object) -> str:
    given = {"add_generation_prompt": True, "continue_final_message": False, "options": options}
    return codec.render_chat(messages, **given)  # type: ignore[arg-type]


def test_developer_is_system_where_the_template_does_not_know_it() -> None:
    codec = TextCodec.load(TINY)
    plain = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    codec.chat_template = codec.hf.chat_template = plain
    assert render(codec, {"role": "developer", "content": "x"}) == "[system]x"
    codec.chat_template = codec.hf.chat_template = plain + "{# developer #}"
    assert render(codec, {"role": "developer", "content": "x"}) == "[developer]x"


def test_template_errors_are_about_the_messages() -> None:
    codec = TextCodec.load(TINY)
    codec.chat_template = codec.hf.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TemplateError, match="roles must alternate"):
        render(codec, {"role": "user", "content": "x"})
    codec.chat_template = None
    with pytest.raises(TemplateError, match="no chat template"):
        render(codec, {"role": "user", "content": "x"})
