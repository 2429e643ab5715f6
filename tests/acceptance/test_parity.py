"""Log-likelihoods through HTTP equal the same model run by transformers. One entry too few would go unnoticed by
evaluation clients and give scores at chance level, so shapes are checked as well as values."""

from __future__ import annotations

from itertools import pairwise

import httpx
import pytest
import torch

from tests.acceptance.reference import CODE, PLAIN, QUESTIONS, Reference
from tests.acceptance.scoring import TOLERANCE, check, parse, score


def shape(answer: dict[str, object], prompts: list[list[int]]) -> None:
    """prompt + 1 entries, null only first, the actual token and a top token at each position."""
    choices = answer["choices"]
    assert isinstance(choices, list)
    assert [choice["index"] for choice in choices] == list(range(len(prompts)))
    for choice, ids in zip(choices, prompts, strict=True):
        logprobs = choice["logprobs"]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert len(logprobs[name]) == len(ids) + 1, name
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        for value, best in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
            assert value is not None and 1 <= len(best) <= 2
            assert value in best.values() or max(best.values()) > value  # two ids of one text: the larger is kept


def agree(http: httpx.Client, reference: Reference, prompts: list[list[int]]) -> tuple[int, float]:
    answer = score(http, prompts)
    shape(answer, prompts)
    return check(reference, answer, prompts)


def eos_prompts(reference: Reference) -> list[list[int]]:
    """Questions with their greedy answer, up to where the next token is EOS."""
    found = []
    for question in QUESTIONS:
        prompt = reference.chat_ids(question)
        new = reference.greedy(prompt, 160)
        if new[-1] == reference.eos:
            found.append(prompt + new[:-1])
    assert found, "no greedy answer ends"
    return found


def test_batch_of_unequal_lengths(http: httpx.Client, reference: Reference) -> None:
    prompts = [reference.ids(text) for text in (*CODE, *PLAIN)] + [reference.chat_ids(text) for text in QUESTIONS]
    prompts.append(reference.ids("".join(CODE * 6)))
    assert min(map(len, prompts)) == 1 and max(map(len, prompts)) > 400
    positions, largest = agree(http, reference, prompts)
    assert positions > 900 and largest <= TOLERANCE


def test_batch_and_single_agree(http: httpx.Client, reference: Reference) -> None:
    prompts = reference.prompts()
    together = parse(score(http, prompts), [1] * len(prompts))
    for prompt, expected in zip(prompts, together, strict=True):
        alone = parse(score(http, [prompt]), [1])[0]
        assert alone.logprobs == pytest.approx(expected.logprobs, abs=TOLERANCE)


def test_random_tokens(http: httpx.Client, reference: Reference) -> None:
    """Unlikely tokens, among them ids that share their text with others."""
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, 4096, (length,), generator=generator).tolist() for length in (2, 63, 64, 65, 129)]
    partial = [reference.ids(char)[0] for char in ("é", "😀", "∑")]  # single bytes of longer characters
    prompts.append(partial * 6)
    agree(http, reference, prompts)


def test_equal_texts_keep_the_larger_value(http: httpx.Client, reference: Reference) -> None:
    """Greedy continuation of bytes that have no text of their own is still recognised as greedy."""
    ids = reference.ids("s = '😀😀😀😀")
    ids += reference.greedy(ids, 12)
    agree(http, reference, [ids])


@pytest.mark.parametrize("length", [1, 2])
def test_shortest_prompts(http: httpx.Client, reference: Reference, length: int) -> None:
    for ids in ([reference.eos] * length, [0] * length, reference.ids("def f")[:length]):
        agree(http, reference, [ids])


def test_next_token_is_eos(http: httpx.Client, reference: Reference) -> None:
    prompts = eos_prompts(reference)
    answer = score(http, prompts)
    shape(answer, prompts)
    check(reference, answer, prompts)
    text = reference.tokenizer.eos_token
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "stop" and choice["logprobs"]["tokens"][-1] == text
        assert not choice["text"].endswith(text)


def test_eos_inside_and_at_the_end_of_prompts(http: httpx.Client, reference: Reference) -> None:
    ids = reference.ids(CODE[0])
    agree(http, reference, [[*ids, reference.eos], [reference.eos, *ids], [*ids, reference.eos, *ids]])


def test_repeats_come_from_the_prefix_cache_and_agree(http: httpx.Client, reference: Reference) -> None:
    ids = reference.ids("# a prefix of its own\n" + "".join(CODE * 5))
    assert len(ids) > 256
    for prompt in (ids, ids, ids[:-7], [*ids, *reference.ids("x = 1\n")]):
        agree(http, reference, [prompt])
    body = {"model": "drafthouse-tiny", "prompt": [ids], "max_tokens": 1}
    usage = http.post("/v1/completions", json=body).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0


def test_string_prompts(http: httpx.Client, reference: Reference) -> None:
    """Without special tokens as the client asks for, and by default as the tokenizer itself would add them."""
    texts = [*CODE, PLAIN[0]]
    for special in (False, True):
        prompts = [reference.ids(text, special) for text in texts]
        answer = score(http, texts, add_special_tokens=special)
        shape(answer, prompts)
        check(reference, answer, prompts)
    prompts = [reference.ids(text, True) for text in texts]
    check(reference, score(http, texts), prompts)
    check(reference, score(http, texts[0]), prompts[:1])


def test_text_and_offsets(http: httpx.Client, reference: Reference) -> None:
    texts = [*CODE, *QUESTIONS]
    special = {str(token): -100 for token in reference.tokenizer.all_special_ids}  # a token, but no part of the text
    answer = score(http, texts, max_tokens=6, logit_bias=special)
    for choice, prompt in zip(answer["choices"], texts, strict=True):
        text, logprobs = choice["text"], choice["logprobs"]
        assert text.startswith(prompt)
        assert "".join(logprobs["tokens"]) == text
        offsets = logprobs["text_offset"]
        assert offsets[0] == 0 and all(a <= b for a, b in pairwise(offsets))
        for token, at in zip(logprobs["tokens"], offsets, strict=True):
            assert text.startswith(token, at)
        assert logprobs["text_offset"].index(len(prompt)) == len(reference.ids(prompt, True))


def test_scoring_without_generating(http: httpx.Client, reference: Reference) -> None:
    prompts = reference.prompts()
    full = score(http, prompts)
    for choice, same in zip(score(http, prompts, max_tokens=0)["choices"], full["choices"], strict=True):
        assert choice["logprobs"]["token_logprobs"][0] is None
        values = same["logprobs"]["token_logprobs"][1:-1]
        assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(values, abs=TOLERANCE)


def test_answers_with_generated_entries_only_are_detected(http: httpx.Client, reference: Reference) -> None:
    """The check itself: this fault gives every option the sum 0.0, and no error in the client."""
    prompts = reference.prompts()[:3]
    answer = score(http, prompts, echo=False)
    assert [sum(one.logprobs) for one in parse(answer, [1] * 3)] == [0, 0, 0]
    with pytest.raises(AssertionError, match="one entry per token"):
        check(reference, answer, prompts)
