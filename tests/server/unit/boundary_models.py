"""Sources of strings over a few letters, and the one language model over canonical tokens that has their law."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from server.text.covers import Context, CoverFinder, Covering
from server.text.pieces import byte_alphabet, piece_table

END = -1  # no token: the text is over


def bpe(merges: Sequence[tuple[str, str]], pre_tokenizer: object | None = None) -> Tokenizer:
    """Byte-level BPE with all bytes and these merges, in the alphabet of byte-level BPE."""
    tokens = [*byte_alphabet(), *dict.fromkeys(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def finder(tokenizer: Tokenizer) -> CoverFinder:
    pieces = piece_table(tokenizer)
    assert pieces is not None
    special = {at for at, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return CoverFinder(tokenizer, pieces, special)


class Source:
    """A finite law of texts, and its canonical token model."""

    def __init__(self, tokenizer: Tokenizer, law: Mapping[str, float]) -> None:
        total = math.fsum(law.values())
        self.law = {text.encode(): weight / total for text, weight in law.items()}
        self.tokenizer = tokenizer
        self.find = finder(tokenizer)
        self._written = [(tuple(tokenizer.encode(text).ids), weight / total) for text, weight in law.items()]

    def starting_with(self, data: bytes) -> float:
        """P(a text begins with these bytes), straight from the law."""
        return math.fsum(weight for text, weight in self.law.items() if text.startswith(data))

    @lru_cache(None)  # noqa: B019  sources live as long as their test
    def row(self, context: Context) -> dict[int, float]:
        """P(next token | tokens) of the model."""
        size = len(context)
        row: dict[int, list[float]] = {}
        for ids, weight in self._written:
            if ids[:size] == context:
                row.setdefault(ids[size] if len(ids) > size else END, []).append(weight)
        total = math.fsum(math.fsum(weights) for weights in row.values())
        return {token: math.fsum(weights) / total for token, weights in row.items()}

    def probability(self, context: Context) -> float:
        """P(a text's tokens begin with these)."""
        return math.prod(self.row(context[:at]).get(token, 0.0) for at, token in enumerate(context))

    def weights(self, covering: Covering) -> list[float]:
        """P(cover | kept) of each cover."""
        answers = {}
        for context, tokens in covering.questions().items():
            row = self.row(covering.kept + context)
            answers[context] = {t: math.log(row[t]) if row.get(t, 0) > 0 else -math.inf for t in tokens}
        return [math.exp(weight) for weight in covering.log_weights(answers)]

    def mass(self, ids: Sequence[int], keep: int | None = None) -> float:
        """P(a text begins with the bytes of these ids), by the covers."""
        covering = self.find.exact(ids, keep)
        if not covering.end:
            return self.probability(covering.kept)
        return self.probability(covering.kept) * math.fsum(self.weights(covering))
