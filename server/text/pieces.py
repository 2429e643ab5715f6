"""The bytes each token stands for, where the tokenizer's decoder is simple enough that they are well defined.

Byte-level BPE and SentencePiece-style vocabularies qualify; then text is the concatenation of pieces, read as UTF-8.
Knows nothing about chat or requests.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE_MARK = "\u2581"  # SentencePiece's visible space


def byte_alphabet() -> dict[str, int]:
    """The characters byte-level BPE writes its 256 bytes with."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def piece_table(tokenizer: Tokenizer) -> list[bytes] | None:
    """Bytes by token id, or None when tokens have no bytes of their own (decoding depends on neighbours)."""
    kinds = _decoder_kinds(tokenizer)
    if is_byte_level(tokenizer):
        alphabet = byte_alphabet()

        def piece(token: str) -> bytes:
            codes = [alphabet.get(char) for char in token]
            return token.encode() if None in codes else bytes(code for code in codes if code is not None)
    elif kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:

        def piece(token: str) -> bytes:
            match = _BYTE_TOKEN.fullmatch(token)
            return bytes([int(match[1], 16)]) if match else token.replace(SPACE_MARK, " ").encode()
    else:
        return None
    table = [b""] * tokenizer.get_vocab_size(with_added_tokens=True)
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        table.extend([b""] * (index + 1 - len(table)))
        table[index] = piece(token)
    for index, added in tokenizer.get_added_tokens_decoder().items():
        table[index] = added.content.encode()
    return table


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether tokens are written in `byte_alphabet`."""
    return _decoder_kinds(tokenizer) == {"ByteLevel"}


def leading_spaces_removed(tokenizer: Tokenizer) -> int:
    """Spaces the decoder takes off the beginning of a text: SentencePiece puts one in front when it encodes."""
    removed = 0
    for member in _decoders(tokenizer):
        if member["type"] == "Strip" and member["content"] == " ":
            removed += member["start"]
        elif member["type"] == "Metaspace" and member.get("prepend_scheme", "always") != "never":
            removed += 1
    return removed


def _decoder_kinds(tokenizer: Tokenizer) -> set[str]:
    return {member["type"] for member in _decoders(tokenizer)}


def _decoders(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    if tokenizer.decoder is None:
        return []
    state: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    return list(state.get("decoders", [state]))
