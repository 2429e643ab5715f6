"""A served model's tokenizer: text to ids, chats to ids, ids to text and to the strings that log-probabilities show.

Wraps a Hugging Face fast tokenizer and never changes it. Knows nothing about requests beyond their texts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from server.offload import offload
from server.text.detokenize import Detokenizer, PieceDetokenizer, WindowDetokenizer
from server.text.pieces import leading_spaces_removed, piece_table

log = logging.getLogger(__name__)


class TemplateError(ValueError):
    """The chat template does not accept these messages."""


@dataclass(frozen=True)
class Encoded:
    """A tokenized text."""

    ids: list[int]
    added: int  # leading tokens that the tokenizer put there and the text does not contain


class TextCodec:
    """One tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError("the model has no fast tokenizer (tokenizer.json), which serving needs")
        self.hf = tokenizer
        self.fast: Tokenizer = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        self.chat_template: str | None = self._default_template()
        self.special_ids = frozenset(
            index for index, added in self.fast.get_added_tokens_decoder().items() if added.special
        )
        self._pieces = piece_table(self.fast)
        self._leading_spaces = leading_spaces_removed(self.fast) if self._pieces is not None else 0

    @classmethod
    def load(cls, source: str | Path, **options: Any) -> TextCodec:
        """From a model folder or hub id."""
        return cls(AutoTokenizer.from_pretrained(str(source), **options))

    def _default_template(self) -> str | None:
        template = self.hf.chat_template
        if isinstance(template, Mapping):
            return template.get("default")
        return template

    @property
    def has_bytes(self) -> bool:
        """Whether every token stands for bytes of its own."""
        return self._pieces is not None

    @cached_property
    def vocabulary(self) -> int:
        """Every token id is below it."""
        return 1 + max(self.fast.get_vocab(with_added_tokens=True).values())

    @cached_property
    def fingerprint(self) -> str:
        """Of the tokens and their ids: equal where the same ids stand for the same tokens."""
        tokens = sorted(self.fast.get_vocab(with_added_tokens=True).items())
        return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()

    # --- encoding ---------------------------------------------------------------------------------------------

    @cached_property
    def longest_piece(self) -> int | None:
        """Bytes of the longest token, where text is at least as long as its pieces together."""
        if self._pieces is None or self.fast.normalizer is not None:
            return None
        return max(map(len, self._pieces), default=1)

    def surely_longer_than(self, text: str, tokens: int) -> bool:
        """True when the text cannot be tokenized into so few tokens; cheap."""
        return self.longest_piece is not None and len(text) > tokens * self.longest_piece

    async def encode(self, text: str, add_special_tokens: bool) -> Encoded:
        (encoded,) = await self.encode_all([text], add_special_tokens)
        return encoded

    async def encode_all(self, texts: Sequence[str], add_special_tokens: bool) -> list[Encoded]:
        return await offload(sum(map(len, texts)), self._encode, texts, add_special_tokens)

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[Encoded]:
        """As a batch, for only that lets other Python threads run meanwhile."""
        encoded = []
        for one in self.fast.encode_batch(list(texts), add_special_tokens=add_special_tokens):
            mask = one.special_tokens_mask if add_special_tokens else []
            encoded.append(Encoded(one.ids, next((i for i, added in enumerate(mask) if not added), len(mask))))
        return encoded

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a short text, nothing added."""
        return self.fast.encode(text, add_special_tokens=False).ids

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        options: Mapping[str, Any],
    ) -> str:
        """The prompt text of a conversation. Raises TemplateError."""
        if self.chat_template is None:
            raise TemplateError("the model has no chat template; use /v1/completions")
        if "developer" not in self.chat_template:
            messages = [{**one, "role": "system"} if one["role"] == "developer" else one for one in messages]
        try:
            text = self.hf.apply_chat_template(
                list(messages),  # type: ignore[arg-type]
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **options,
            )
        except Exception as error:  # a template is a program; whatever it raises is about its input
            log.info("chat template refused the messages: %r", error)
            raise TemplateError(f"the chat template does not accept these messages: {error}") from error
        assert isinstance(text, str)
        return text

    # --- decoding ---------------------------------------------------------------------------------------------

    def detokenizer(self) -> Detokenizer:
        if self._pieces is not None:
            return PieceDetokenizer(self._pieces)
        return WindowDetokenizer(lambda ids: self.fast.decode(ids, skip_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of all ids, as the tokenizer decodes a whole text."""
        detokenizer = self.detokenizer()
        text = "".join(map(detokenizer.feed, ids)) + detokenizer.finish()
        return text[self.leading_spaces(text) :]

    def leading_spaces(self, text: str) -> int:
        """Spaces before a text decoded token by token that are not part of it when it is a whole text."""
        return min(self._leading_spaces, len(text) - len(text.lstrip(" ")))

    def token_bytes(self, token: int) -> bytes:
        """What the token alone stands for; for a part of a character not valid UTF-8."""
        if self._pieces is not None:
            return self._pieces[token] if token < len(self._pieces) else b""
        return self.fast.decode([token], skip_special_tokens=False).encode()

    def pieces(self) -> list[bytes]:
        """`token_bytes` of every id."""
        return [self.token_bytes(token) for token in range(self.vocabulary)]

    def token_text(self, token: int) -> str:
        """The token as log-probabilities show it; may contain U+FFFD."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary writes them."""
        return [self.fast.id_to_token(token) or "" for token in ids]

    @property
    def bos_token_id(self) -> int | None:
        return self.hf.bos_token_id

    @property
    def eos_token_id(self) -> int | None:
        return self.hf.eos_token_id

    def info(self) -> dict[str, Any]:
        """What remote clients ask of a tokenizer."""
        return {
            "tokenizer_class": type(self.hf).__name__,
            "eos_token": self.hf.eos_token,
            "bos_token": self.hf.bos_token,
            "pad_token": self.hf.pad_token,
            "unk_token": self.hf.unk_token,
            "model_max_length": min(int(self.hf.model_max_length), 2**31 - 1),
            "vocab_size": self.fast.get_vocab_size(with_added_tokens=True),
            "chat_template": self.chat_template,
        }
