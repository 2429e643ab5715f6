"""The tokens of every continuation of a prompt begin with exactly one of its covers, whatever cuts text into words."""

from __future__ import annotations

import itertools
import random

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from server.text.codec import TextCodec
from server.text.covers import CoverFinder
from server.text.pieces import byte_alphabet
from tests.server.live import TINY
from tests.server.unit.boundary_models import finder

SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{SUFFIX}?|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{SUFFIX}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
ALPHABETS = ["'rEa ", " \nA/.", "中Bc'", "12a ", "a/\n'", "'sS中A", " 'lL.", "\n /中"]
WORDS = [
    *("don", "can", "I", "we", "x", "def", "self", "A", "Bc", "é", "中", "文", "😀"),
    *("'", "'", "t", "re", "s", "ve", "ll", "LL", "1", "23", "456"),
    *(" ", " ", "  ", "\n", "\n\n", "\t", "\u00a0", ".", "/", "(", "@-", "@", "_", "="),
]


def random_tokenizer(pattern: str, letters: str, chance: random.Random, whole_words: bool) -> Tokenizer:
    """A few merges inside random words; `whole_words` are further tokens, for words that stand alone."""
    cutter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )

    def word() -> str:
        text = "".join(chance.choices(letters, k=chance.randint(2, 4)))
        return str(chance.choice(cutter.pre_tokenize_str(text))[0])

    tokens, merges = list(byte_alphabet()), list[tuple[str, str]]()

    def model() -> models.BPE:
        return models.BPE({token: at for at, token in enumerate(tokens)}, merges, ignore_merges=whole_words)

    for _ in range(12):
        made = [token.value for token in model().tokenize(word())]
        pairs = [pair for pair in itertools.pairwise(made) if "".join(pair) not in tokens]
        if pairs:
            merges.append(chance.choice(pairs))
            tokens.append("".join(merges[-1]))
    if whole_words:
        tokens += sorted({word() for _ in range(8)} - {*tokens})
    tokenizer = Tokenizer(model())
    tokenizer.pre_tokenizer = cutter
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def covers_met(find: CoverFinder, prompt: list[int], written: tuple[int, ...]) -> int | None:
    """With how many covers the tokens of a longer text begin; None if these have no law to obey."""
    keep = find.safe_split(prompt)
    if not find._is_fresh(prompt, keep) and list(written[:keep]) != prompt[:keep]:
        return None  # the prompt's first tokens are taken for certain
    covering = find.exact(prompt)
    begun = [covering.kept + cover.ids for cover in covering.covers] or [covering.kept]
    return sum(written[: len(ids)] == ids for ids in begun)


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_text_over_a_few_letters(pattern: str, whole_words: bool) -> None:
    compared = 0
    for seed, letters in enumerate(ALPHABETS):
        chance = random.Random(seed)
        tokenizer = random_tokenizer(PATTERNS[pattern], letters, chance, whole_words)
        find = finder(tokenizer)
        texts = ["a " + "".join(some) for size in range(6) for some in itertools.product(letters, repeat=size)]
        written = {text: tuple(one.ids) for text, one in zip(texts, tokenizer.encode_batch_fast(texts), strict=True)}
        for prompt in chance.sample([text for text in texts if 3 <= len(text) <= 6], 12):
            for text in (text for text in texts if text.startswith(prompt)):
                met = covers_met(find, list(written[prompt]), written[text])
                assert met in (None, 1), (seed, prompt, text)
                compared += met is not None
    assert compared > 1000


@pytest.fixture(scope="module")
def find_tiny() -> tuple[Tokenizer, CoverFinder]:
    codec = TextCodec.load(TINY)
    return codec.fast, finder(codec.fast)


def check(tokenizer: Tokenizer, find: CoverFinder, prompt: str, rest: str) -> bool:
    ids, whole = (tokenizer.encode(text, add_special_tokens=False).ids for text in (prompt, prompt + rest))
    met = covers_met(find, ids, tuple(whole))
    assert met in (None, 1), (prompt, rest)
    return met is not None


def test_random_texts_with_the_shipped_tokenizer(find_tiny: tuple[Tokenizer, CoverFinder]) -> None:
    assert check(*find_tiny, "x = @-'r", "e")
    chance = random.Random(5)
    done = 0
    for _ in range(150):
        text = "x " + "".join(chance.choices(WORDS, k=chance.randint(2, 12)))
        cut = chance.randint(2, len(text))
        done += check(*find_tiny, text[:cut], text[cut:])
    assert done > 120


def test_a_word_that_is_a_token_only_where_it_stands_alone() -> None:
    tokens = ["a", "b", "c", "d", "1", "bc", "abc", "Ġ"]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, [("b", "c")], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    covers = CoverFinder(tokenizer, [token.replace("Ġ", " ").encode() for token in tokens], ()).exact([4, 0, 1]).covers
    assert {cover.ids for cover in covers} == {(0, 1), (0, 5), (6,)}


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_such_tokens_are_told_where_they_cannot_be_handled(ignore_merges: bool) -> None:
    tokens = ["▁", "a", "b", "ab", "▁ab"]
    model = models.BPE({token: at for at, token in enumerate(tokens)}, [("a", "b")], ignore_merges=ignore_merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    assert finder(tokenizer).is_exact is not ignore_merges
