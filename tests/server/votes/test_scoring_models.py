"""A served model as the scorer of a vote: over the runner without a model, and over the embedded ones."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from engine.request import DecodeRequest
from engine.runners.base import Overloaded, TooLarge
from models.embedded import DRAFT, TARGET
from samplers.chain import resolve
from server.config import load_config
from server.launch import build_state
from server.state import Limits, ServedModel, ServerState
from server.text.codec import TextCodec
from server.votes.problem import Problem
from server.votes.scoring import scored
from server.votes.scoring.model import ModelScorer
from tests.server.fake_runner import FakeRunner
from tests.server.live import TINY, fake_state
from tests.voting.votes import sample, vote
from voting.contract import Sample

OTHER = "acme/hash-b"
TEXTS = ["So it is 7. #### 7", "Grüße, 😀", "x", "no"]
CHAT = Problem("How many?", [{"role": "system", "content": "Count."}, {"role": "user", "content": "How many?"}])
PLAIN = Problem("How many? ")
PAGE_SIZE = 16  # tokens
SETTINGS = {"max_model_len": 256, "draft_model": DRAFT, "threads": 1, "replay": False, "page_size": PAGE_SIZE}
QUESTION = [{"role": "user", "content": "Mia has 7 apples. She buys 5 more. How many apples does Mia have now?"}]


def asked(condition: str = "none", unit: str = "byte", model: str = OTHER) -> dict[str, str]:
    return {"model": model, "condition": condition, "unit": unit}


def samples_of(texts: Sequence[str]) -> list[Sample]:
    return [sample(i, "a", text=text, scores={}) for i, text in enumerate(texts)]


def codec_with(**special: str | None) -> TextCodec:
    codec = TextCodec.load(TINY)
    for name, token in special.items():
        setattr(codec.hf, name, token)
    return codec


def state_with(codec: TextCodec, max_model_len: int = 512, **options: Any) -> tuple[ServerState, FakeRunner]:
    """A server whose second model has this tokenizer."""
    state = fake_state(**options)
    runner = FakeRunner(max(4096, codec.vocabulary), max_model_len, frozenset({1}))
    state.models[1] = ServedModel(OTHER, runner, codec)
    return state, runner


def by_hand(runner: FakeRunner, before: Sequence[int], ids: Sequence[int]) -> float:
    """ln p of ids behind others, by the law of the fake model."""
    whole = [*before, *ids]
    return math.fsum(float(runner.raw(tuple(whole[:at]))[whole[at]]) for at in range(len(before), len(whole)))


async def scores(state: ServerState, spec: dict[str, str], problem: Problem, texts: Sequence[str]) -> list[float]:
    found = await scored(spec, problem, samples_of(texts), state)
    assert not found.flags
    return [one.scores[spec["model"]] for one in found.samples]


# --- the formulas


async def test_a_response_alone_stands_behind_bos() -> None:
    state, runner = state_with(codec_with())
    codec = state.models[1].tokenizer
    ids = [codec.encode_plain(text) for text in TEXTS]
    sums = [by_hand(runner, [codec.hf.bos_token_id], one) for one in ids]
    sizes = [len(text.encode()) for text in TEXTS]
    assert await scores(state, asked(), PLAIN, TEXTS) == pytest.approx(
        [total / (math.log(2) * size) for total, size in zip(sums, sizes, strict=True)], rel=1e-12
    )
    assert await scores(state, asked(unit="token"), CHAT, TEXTS) == pytest.approx(
        [total / len(one) for total, one in zip(sums, ids, strict=True)], rel=1e-12
    )
    assert all(request.prompt_ids[0] == codec.hf.bos_token_id for request in runner.requests)
    assert {(request.max_tokens, request.n) for request in runner.requests} == {(0, 1)}


async def test_without_bos_the_first_token_counts_nowhere() -> None:
    state, runner = state_with(codec_with(bos_token=None))
    codec = state.models[1].tokenizer
    found = await scored(asked(), PLAIN, samples_of(TEXTS), state)
    for text, one in zip(TEXTS, found.samples, strict=True):
        first, *rest = codec.encode_plain(text)
        size = sum(len(codec.token_bytes(token)) for token in rest)
        if rest:
            expected = by_hand(runner, [first], rest) / (math.log(2) * size)
            assert one.scores[OTHER] == pytest.approx(expected, rel=1e-12)
        else:
            assert math.isnan(one.scores[OTHER])
    assert any(math.isnan(one.scores[OTHER]) for one in found.samples)


async def test_behind_the_prompt_of_the_scorers_own_template() -> None:
    state, runner = state_with(codec_with())
    codec = state.models[1].tokenizer
    rendered = codec.render_chat(
        CHAT.messages or [], add_generation_prompt=True, continue_final_message=False, options={}
    )
    for problem, prompt in ((CHAT, rendered), (PLAIN, PLAIN.text)):
        before = codec.encode_plain(prompt)
        expected = [by_hand(runner, before, codec.encode_plain(text)) / len(codec.encode_plain(text)) for text in TEXTS]
        assert await scores(state, asked("prompt", "token"), problem, TEXTS) == pytest.approx(expected, rel=1e-12)


async def test_a_message_that_samples_continue_is_not_closed() -> None:
    state, runner = state_with(codec_with())
    messages = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "So it"}]
    problem = Problem("", messages, continued=True)
    await scores(state, asked("prompt"), problem, [" is 7.", " is 8."])
    texts = [state.models[1].tokenizer.decode(request.prompt_ids) for request in runner.requests]
    assert [text[-22:] for text in texts] == ["assistant|>So it is 7.", "assistant|>So it is 8."]


async def test_a_scorer_without_a_template_reads_the_plain_text() -> None:
    codec = codec_with()
    codec.chat_template = None
    state, _ = state_with(codec)
    spec = asked("prompt")
    assert await scores(state, spec, CHAT, TEXTS) == await scores(state, spec, Problem(CHAT.text), TEXTS)
    assert await scores(state, spec, Problem(""), TEXTS) == await scores(state, asked(), PLAIN, TEXTS)  # only BOS


@given(st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()))
@settings(max_examples=50, deadline=None)
def test_bytes_are_those_of_the_tokens_that_count(text: str) -> None:
    for codec in (CODEC, SPACED):
        served = ServedModel(OTHER, FakeRunner(4096, 512, frozenset({1})), codec)
        (reading,) = asyncio.run(ModelScorer(served, "none", "byte", 1)._read([], [text]))
        assert reading is not None and b"".join(map(codec.token_bytes, reading.ids)).strip(b" ") == text.encode().strip(
            b" "
        )
        assert reading.n_bytes == sum(len(codec.token_bytes(token)) for token in reading.ids[1:])


def test_a_space_that_the_tokenizer_puts_in_front_is_not_put_there_twice() -> None:
    served = ServedModel(OTHER, FakeRunner(4096, 512, frozenset({1})), SPACED)
    scorer = ModelScorer(served, "prompt", "byte", 1)
    own, none = asyncio.run(scorer._read([7], [" ab", "ab"]))
    assert own is not None and none is not None
    assert own.ids == none.ids == (7, *SPACED.encode_plain("ab"))
    assert (own.n_bytes, none.n_bytes) == (3, 2)


def spaced_codec() -> TextCodec:
    """A vocabulary in the manner of SentencePiece: bytes, and a mark for spaces, one of which it puts in front."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "a": 257, "▁a": 258}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[("▁", "a")], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


CODEC = codec_with(bos_token=None)
SPACED = spaced_codec()


# --- what is asked, and of how many


async def test_equal_texts_are_read_once_and_alike() -> None:
    state, runner = state_with(codec_with())
    samples = [*samples_of(["one", "two", "one"]), sample(3, None, text="three", scores={})]
    found = await scored(asked(), PLAIN, samples, state)
    assert len(runner.requests) == 2
    assert found.prompt_tokens == sum(len(request.prompt_ids) for request in runner.requests)
    first, second, third, abstains = found.samples
    assert first.scores == third.scores != second.scores and abstains.scores == {}
    assert (
        vote("bon", found.samples, scorer=asked()).representative
        == vote("ppl", found.samples, scorer=asked()).representative
    )


async def test_a_single_sample_is_not_scored() -> None:
    state, runner = state_with(codec_with())
    samples = [*samples_of(["one"]), sample(1, None, text="two", scores={})]
    found = await scored(asked(), PLAIN, samples, state)
    assert (found.samples, found.flags, found.prompt_tokens, runner.requests) == (tuple(samples), (), 0, [])


async def test_what_is_read_here_is_found_by_nobody_else() -> None:
    state, runner = state_with(codec_with())
    for _ in range(2):
        await scored(asked("prompt"), PLAIN, samples_of(TEXTS), state)
    salts = [request.cache_salt for request in runner.requests]
    assert len(set(salts)) == 2 and all(len(salt) > 16 for salt in salts)
    assert salts == sorted(salts, key=salts.index)  # one salt per vote: its responses share the prompt


async def test_the_scores_do_not_depend_on_how_many_are_read_at_a_time() -> None:
    found = []
    for in_flight in (1, 2, 32):
        state, _ = state_with(codec_with(), limits=Limits(prompts_in_flight=in_flight))
        found.append(await scores(state, asked("prompt"), CHAT, TEXTS))
    assert found[0] == found[1] == found[2]


# --- responses that cannot be scored


@pytest.mark.parametrize("condition", ["none", "prompt"])
async def test_an_empty_response_abstains(condition: str) -> None:
    state, _ = state_with(codec_with())
    found = await scored(asked(condition), PLAIN, samples_of(["", "one", "two"]), state)
    assert math.isnan(found.samples[0].scores[OTHER]) and found.flags == ()
    assert vote("ppl", found.samples, scorer=asked(condition)).samples[0].abstain_reason == "no_score"


@pytest.mark.parametrize("length", [40, 10**5])
async def test_a_response_longer_than_the_context_abstains(length: int) -> None:
    state, runner = state_with(codec_with(), max_model_len=32)
    found = await scored(asked(), PLAIN, samples_of(["one two", "xq" * length, "three"]), state)
    assert [math.isnan(one.scores[OTHER]) for one in found.samples] == [False, True, False]
    assert found.flags == ("scorer_context_exceeded",) and len(runner.requests) == 2
    fits = "xq" * 60
    ids = codec_with().encode_plain(fits)
    for room, flags in ((1, ()), (0, ("scorer_context_exceeded",))):
        state, _ = state_with(codec_with(), max_model_len=len(ids) + room)
        assert (await scored(asked(), PLAIN, samples_of([fits, "one"]), state)).flags == flags


async def test_a_prompt_longer_than_the_context_leaves_no_scores() -> None:
    state, runner = state_with(codec_with(), max_model_len=32)
    found = await scored(asked("prompt"), Problem("xq" * 100), samples_of(TEXTS), state)
    assert all(math.isnan(one.scores[OTHER]) for one in found.samples)
    assert found.flags == ("scorer_context_exceeded",) and not runner.requests


async def test_a_response_for_which_there_is_no_memory_abstains(monkeypatch: pytest.MonkeyPatch) -> None:
    state, runner = state_with(codec_with())
    submit = runner.submit

    async def limited(request: DecodeRequest) -> AsyncIterator[Any]:
        if len(request.prompt_ids) > 5:
            raise TooLarge("the request needs more pages than there are")
        async for output in submit(request):
            yield output

    monkeypatch.setattr(runner, "submit", limited)
    found = await scored(asked(), PLAIN, samples_of(["one two three four five", "one", "two"]), state)
    assert [math.isnan(one.scores[OTHER]) for one in found.samples] == [True, False, False]
    assert found.flags == ("scorer_context_exceeded",)


async def test_messages_that_the_scorers_template_refuses(caplog: pytest.LogCaptureFixture) -> None:
    codec = codec_with()
    codec.hf.chat_template = codec.chat_template = "{{ raise_exception('no system message here') }}"
    state, _ = state_with(codec)
    found = await scored(asked("prompt"), CHAT, samples_of(TEXTS), state)
    assert all(math.isnan(one.scores[OTHER]) for one in found.samples) and found.flags == ("scorer_failed",)
    assert "no system message here" in caplog.text


async def test_an_overloaded_model_is_the_requests_affair() -> None:
    state, runner = state_with(codec_with())
    runner.behaviour.overloaded = True
    with pytest.raises(Overloaded):
        await scored(asked(), PLAIN, samples_of(TEXTS), state)
    assert not runner.live


# --- the embedded models


@pytest.fixture(scope="module")
def embedded() -> Iterator[ServerState]:
    state = build_state(load_config(SETTINGS, {}))
    yield state
    asyncio.run(state.close())


async def drawn(model: ServedModel, messages: list[dict[str, str]], n: int) -> list[tuple[Sample, float]]:
    """Samples that end by themselves, and the log-probability of all their tokens but EOS."""
    codec = model.tokenizer
    prompt = codec.render_chat(messages, add_generation_prompt=True, continue_final_message=False, options={})
    request = DecodeRequest(
        id="drawn",
        prompt_ids=tuple(codec.encode_plain(prompt)),
        chain=resolve({"temperature": 0.8}, model.runner.vocab_size, model.runner.facts),
        seed=3,
        max_tokens=100,
        n=n,
        eos_token_ids=model.eos_token_ids,
    )
    outputs = [output async for output in model.runner.submit(request)]
    found = []
    for j in range(n):
        deltas = [output.deltas[j] for output in outputs if j in output.deltas]
        ids = [token for delta in deltas for token in delta.token_ids]
        logprobs = [logprob for delta in deltas for logprob in delta.logprobs]
        if ids[-1] in model.eos_token_ids:
            text = codec.decode(ids[:-1])
            found.append((sample(j, "a", text=text, token_ids=tuple(ids[:-1]), scores={}), math.fsum(logprobs[:-1])))
    return found


async def test_the_generating_model_finds_its_samples_as_probable_as_it_did(embedded: ServerState) -> None:
    """Where tokenizing a text again gives its ids: NLL = -J without the term of EOS."""
    model = embedded.models[0]
    pairs = await drawn(model, QUESTION, 12)
    pairs = [(one, joint) for one, joint in pairs if tuple(model.tokenizer.encode_plain(one.text)) == one.token_ids]
    assert len({one.text for one, _ in pairs}) > 4
    samples = [one for one, _ in pairs]
    found = await scored(asked("prompt", "byte", model.id), Problem("", QUESTION), samples, embedded)
    for one, (_, joint) in zip(found.samples, pairs, strict=True):
        bits = -one.scores[model.id] * len(one.text.encode())
        assert bits * math.log(2) == pytest.approx(-joint, abs=1e-3)
    alone = await scored(asked("none", "byte", model.id), Problem("", QUESTION), samples, embedded)
    for one, other in zip(alone.samples, found.samples, strict=True):
        assert one.scores[model.id] < other.scores[model.id]


@pytest.mark.parametrize("condition", ["none", "prompt"])
async def test_scores_of_another_model_whatever_is_read_beside_them(embedded: ServerState, condition: str) -> None:
    texts = [text * repeat for text in TEXTS for repeat in (1, 9)]
    spec = asked(condition, "byte", DRAFT)
    together = await scores(embedded, spec, CHAT, texts)
    embedded.limits = replace(embedded.limits, prompts_in_flight=1)
    in_turn = await scores(embedded, spec, CHAT, texts)
    by_pairs = [await scores(embedded, spec, CHAT, [text, TEXTS[0]]) for text in texts[1:]]
    embedded.limits = Limits()
    assert together == pytest.approx(in_turn, abs=1e-5)
    assert together[1:] == pytest.approx([one for one, _ in by_pairs], abs=1e-5)
    assert together != pytest.approx(await scores(embedded, asked(condition, "byte", TARGET), CHAT, texts), abs=1e-2)


async def test_the_prompt_of_a_vote_is_read_once(embedded: ServerState) -> None:
    runner = embedded.models[1].runner
    problem = Problem("How many are there? " * 16)
    before = runner.stats().cached_prompt_tokens
    for _ in range(2):  # votes find nothing of each other
        await scores(embedded, asked("prompt", "byte", DRAFT), problem, TEXTS)
    pages = len(embedded.models[1].tokenizer.encode_plain(problem.text)) // PAGE_SIZE
    assert pages and runner.stats().cached_prompt_tokens - before == 2 * (len(TEXTS) - 1) * pages * PAGE_SIZE
