"""Regular expressions over a model's tokens: which token may follow so that the whole text can still match.

llguidance walks the tree of all tokens by derivatives of the expression, byte by byte. A state from which no bytes lead
to a match is never entered. One from which bytes do but no tokens (they lack one of the bytes) is: it allows nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from samplers.contract import SamplerError
from samplers.model_facts import ModelFacts
from samplers.programs.contract import ProgramError

LONGEST_BYTES = 8192  # of an expression
_KEPT = 64  # compiled expressions per model
_NEVER_TEXT = 0xFF  # in no UTF-8; llguidance writes its special tokens with it
_NOWHERE = "NoExtensionBias"  # how llguidance calls a state that no token leaves
_LIMITS = LLParserLimits(verbose_errors=False)


def compiled(regex: str, model: ModelFacts, path: str) -> State:
    """The state before the first token. Two calls with one expression compile it once.

    Raises SamplerError, naming `path`, for what is no expression, is not supported (look-around, anchors
    inside, back-references), or matches nothing that the model's tokens can begin.
    """
    if model.pieces is None:
        raise SamplerError(f"'{path}' needs a model whose tokens' text is known", path)
    if not regex.isascii() and any("\ud800" <= letter <= "\udfff" for letter in regex):
        raise SamplerError(f"'{path}' contains an unpaired surrogate", path)
    if len(regex.encode()) > LONGEST_BYTES:
        raise SamplerError(f"'{path}' is longer than {LONGEST_BYTES} bytes", path)
    matcher = model.shared(_Tokens).compile(regex)
    if matcher.is_error():
        raise SamplerError(f"'{path}' cannot be followed: {_reason(matcher.get_error())}", path)
    state = State(matcher, len(model.pieces))
    if not state.accepting and not state.allowed(len(model.pieces), ()).any():
        raise SamplerError(f"'{path}' matches nothing that this model can write", path)
    return state.copy()


class State:
    """A place in an expression: what has been written so far is the beginning of a match."""

    __slots__ = ("_known", "_matcher")

    def __init__(self, matcher: LLMatcher, known: int) -> None:
        """`known`: ids below it have text."""
        self._matcher = matcher
        self._known = known

    @property
    def accepting(self) -> bool:
        """The text is a match as it is."""
        return not self._matcher.is_error() and self._matcher.is_accepting()

    def allowed(self, vocab: int, ending_ids: Collection[int]) -> Tensor:
        """[vocab] bool, CPU: tokens that may follow. Special tokens never do; ending ids, whatever their text, do where
        the text is a match. Raises ProgramError if the expression has become too large to follow."""
        accepting = self.accepting
        allowed = np.zeros(vocab, bool)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        known = min(vocab, self._known)
        if not self._matcher.is_error():
            allowed[:known] = np.unpackbits(bits, count=known, bitorder="little")
        elif not self._matcher.get_error().startswith(_NOWHERE):
            raise ProgramError("regex_too_complex", f"the regex cannot be followed: {self._matcher.get_error()}")
        allowed[[token for token in ending_ids if token < vocab]] = accepting
        return torch.from_numpy(allowed)

    def advance(self, tokens: Collection[int]) -> State:
        """Go on by tokens that are allowed, none of them an ending id. Returns the state itself."""
        consumed = self._matcher.consume_tokens(list(tokens))
        assert consumed, "a token that is not allowed"
        return self

    def copy(self) -> State:
        return State(self._matcher.deep_copy(), self._known)


class _Tokens:
    """A model's tokens as llguidance takes them."""

    def __init__(self, model: ModelFacts) -> None:
        assert model.pieces is not None
        end = len(model.pieces)  # an id of our own: where the text may end is read from the state, not from its mask
        texts = [
            b"" if token in model.special_ids or _NEVER_TEXT in piece else piece
            for token, piece in enumerate(model.pieces)
        ]
        words = SimpleNamespace(tokens=[*texts, b"<end>"], special_token_ids=[end], eos_token_id=end, bos_token_id=None)
        self._tokenizer = LLTokenizer(TokenizerWrapper(words), slices=[])
        self.compile = lru_cache(_KEPT)(self._compile)

    def _compile(self, regex: str) -> LLMatcher:
        """A matcher that nobody may advance. Errors are its state."""
        (grammar,) = json.loads(LLMatcher.grammar_from_regex(regex))["grammars"]
        # without `no_forcing` only one of the ways to split text that must follow into tokens would be allowed
        lark = '%llguidance {"no_forcing": true}\n' + grammar["lark_grammar"]
        return LLMatcher(self._tokenizer, lark, log_level=0, limits=_LIMITS)


def _reason(error: str) -> str:
    """The one line of a compiler's message that says what is wrong."""
    found = re.search(r"^error: (.*)", error, re.MULTILINE)
    return found[1] if found else re.sub(r"^at \d+\(\d+\): ", "", error.split("\n")[0])
