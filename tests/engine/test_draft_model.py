"""A draft model in the engine's thread: its rows are those of a fresh pass whatever was kept and dropped before, and
its drafts depend on nothing but their own request."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.runners.torch.draft_model import DraftModel
from engine.runners.torch.loader import LoadedModel, Sizes, check, load, sizes
from engine.runners.torch.packing import Chunk
from engine.runners.torch.step import Step
from engine.settings import EngineSettings, SettingsError
from models.embedded import DRAFT, TARGET, locate
from samplers.chain import Chain, resolve
from samplers.quantise import draw_by_mass
from samplers.rng import Noise, Purpose, Stream
from samplers.stack import SamplerStack
from spec_decode.contract import DraftAdmission, DraftPlan, DraftTree, Law
from spec_decode.token_ranking import TokenRanking
from spec_decode.tree_forms import Form, chain, depths, sequences, static
from tests.engine.tiny_models import VOCABULARY, tiny_model

CLOSE = 1e-4
SLOTS = 6
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32]


def loaded(model: nn.Module) -> LoadedModel:
    return check(copy.deepcopy(model), EngineSettings())


class Pair:
    """A draft model beside a target, and what it says in a fresh pass of its own eager attention."""

    def __init__(
        self,
        kind: str = "llama",
        draft_tokens: int = VOCABULARY,
        num_pages: int = 200,
        max_rows: int = 64,
        parts: Mapping[str, int] | None = None,
        ranking: TokenRanking | None = None,
        **changes: object,
    ) -> None:
        model = tiny_model(kind, seed=1, vocab_size=draft_tokens, num_hidden_layers=2, **changes)
        self.reference = copy.deepcopy(model)
        self.reference.set_attn_implementation("eager")
        self.target = loaded(tiny_model("llama"))
        own = Sizes(4, num_pages, SLOTS, max_rows, 1000)
        settings = EngineSettings(replay=False, draft_vocab=parts or {})
        self.drafter = DraftModel(loaded(model), settings, self.target, own, ranking)

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """[V] behind these tokens."""
        own = self.reference(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0, -1]
        row = torch.full((VOCABULARY,), -torch.inf)
        row[: len(own)] = own[:VOCABULARY]
        return row

    def propose(self, slots: Sequence[int], plans: Sequence[DraftPlan], starts: Sequence[int]) -> list[DraftTree]:
        noise = Noise(np.array(slots) + 100, np.zeros(len(slots), np.int64), np.array(starts, np.int64))
        trees = self.drafter.propose(slots, plans, noise)
        self.drafter.check_integrity()
        for tree in trees:
            tree.check()
        return trees

    def computed(self, slots: Sequence[int], plans: Sequence[DraftPlan]) -> list[int]:
        """Rows of every forward pass that a proposal takes."""
        rows: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            pack = self.drafter.model.pack

            def counted(chunks: list[Chunk], wanted: list[int]) -> Step:
                rows.append(sum(len(chunk.tokens) for chunk in chunks))
                return pack(chunks, wanted)

            patch.setattr(self.drafter.model, "pack", counted)
            self.propose(slots, plans, [0] * len(slots))
        return rows

    def check_rows(self, tree: DraftTree, text: Sequence[int]) -> None:
        """Every drawn node of a tree behind this text comes from the row of a fresh pass; certain ones are its best."""
        for node in range(len(tree.tokens)):
            row = self.logits([*text, *path(tree, int(tree.parents[node]))])
            siblings = np.flatnonzero(tree.parents == tree.parents[node]).tolist()
            if tree.laws[node] == Law.DENSE:
                assert tree.q is not None
                q = row.softmax(0)
                certain = [int(tree.tokens[other]) for other in siblings if tree.laws[other] == Law.ONE_HOT]
                q[certain] = 0.0
                assert torch.allclose(tree.q[tree.q_rows[node]], q / q.sum(), atol=CLOSE)
            else:
                worse = sum(tree.laws[other] == Law.ONE_HOT for other in siblings)
                assert row[int(tree.tokens[node])] > row.sort(descending=True).values[worse - 1] - CLOSE


def plan(form: Form) -> DraftPlan:
    return DraftPlan(len(form), max(depths(form), default=0), form)


def path(tree: DraftTree, node: int) -> list[int]:
    """Tokens from the root down to a node."""
    return [] if node < 0 else [*path(tree, int(tree.parents[node])), int(tree.tokens[node])]


def admission(tokens: Sequence[int], law: str = "auto", slot: int = 0, **more: object) -> DraftAdmission:
    return DraftAdmission(tokens, len(tokens), stream=Stream(slot + 100, 0), law=law, **more)  # type: ignore[arg-type]


FORMS: dict[str, list[tuple[str, DraftPlan]]] = {
    "chains": [("auto", plan(chain(1))), ("auto", plan(chain(5)))],
    "trees": [
        ("iid", plan(sequences(3, 3))),
        ("swor", plan(static((3, 2, 1), 12))),
        ("hu", plan(static((2, 2, 2), 14))),
        ("topk", DraftPlan(9, 3, None, 3)),
        ("swor", DraftPlan(9, 3, None, 3)),
    ],
}


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize(("kind", "changes"), [("llama", {}), ("mistral", {}), ("gemma2", {})])
def test_rows_are_those_of_a_fresh_pass_after_every_rollback(forms: str, kind: str, changes: dict[str, object]) -> None:
    pair = Pair(kind, **changes)
    random = np.random.default_rng(7)
    laws = [FORMS[forms][slot % len(FORMS[forms])] for slot in range(5)]
    texts = [PROMPT[: 2 + 2 * slot] for slot in range(5)]
    for slot, (law, _) in enumerate(laws):
        pair.drafter.admit(slot, admission(texts[slot], law, slot))
    for turn in range(6):
        slots = [slot for slot in range(5) if turn in (0, 5) or random.random() < 0.7]
        trees = pair.propose(slots, [laws[slot][1] for slot in slots], [turn] * len(slots))
        for slot, tree in zip(slots, trees, strict=True):
            assert len(tree.tokens)
            pair.check_rows(tree, texts[slot])
            node = int(random.integers(-1, len(tree.tokens)))  # nothing, something or all of it is accepted
            texts[slot] = [*texts[slot], *path(tree, node), int(random.integers(VOCABULARY))]
            pair.drafter.commit(slot, [*path(tree, node), texts[slot][-1]])
            pair.drafter.check_integrity()
        for slot in set(range(5)) - set(slots):  # plain steps meanwhile
            more = random.integers(VOCABULARY, size=3).tolist()
            pair.drafter.commit(slot, more)
            texts[slot] = texts[slot] + more


def test_a_draft_that_is_cut_or_never_judged_leaves_no_trace() -> None:
    pair = Pair()
    pair.drafter.admit(0, admission(PROMPT))
    first = pair.propose([0], [plan(chain(4))], [0])[0]
    again = pair.propose([0], [plan(chain(4))], [0])[0]  # the step has not come about
    assert first.tokens.tolist() == again.tokens.tolist()
    accepted = first.tokens[:2].tolist()
    pair.drafter.commit(0, accepted)  # the answer ends within its draft, and goes on all the same
    pair.check_rows(pair.propose([0], [plan(chain(3))], [2])[0], [*PROMPT, *accepted])
    pair.drafter.commit(0, [])
    pair.check_rows(pair.propose([0], [plan(chain(3))], [2])[0], [*PROMPT, *accepted])


def test_long_texts_are_caught_up_with_in_several_passes() -> None:
    pair = Pair(max_rows=SLOTS + 1)
    texts = [PROMPT * 3, PROMPT[:1], PROMPT]
    form = plan(static((3, 3), 12))
    for slot, text in enumerate(texts):
        pair.drafter.admit(slot, admission(text, "swor", slot))
    for slot, tree in enumerate(pair.propose([0, 1, 2], [form] * 3, [0] * 3)):
        assert len(tree.tokens) == 12
        pair.check_rows(tree, texts[slot])


def test_what_is_known_is_not_computed_again() -> None:
    pair = Pair()
    pair.drafter.admit(0, admission(PROMPT))
    assert pair.computed([0], [plan(chain(3))]) == [len(PROMPT), 1, 1]
    tokens = pair.propose([0], [plan(chain(3))], [0])[0].tokens.tolist()
    pair.drafter.commit(0, [*tokens, 5])  # of the last draft there is no row yet
    assert pair.computed([0], [plan(chain(2))]) == [2, 1]
    pair.drafter.commit(0, [VOCABULARY - 1])
    assert pair.computed([0], [plan(chain(1))]) == [1]
    pair.drafter.admit(1, admission(PROMPT, "topk"))
    tree = pair.propose([1], [plan(static((2, 2, 1), 10))], [0])[0]
    pair.drafter.commit(1, [*path(tree, 5), 9])  # a path that is not the first one
    assert pair.computed([1], [plan(chain(1))]) == [1]
    pair.drafter.fork(1, 2, Stream(102, 0))
    pair.drafter.commit(2, [3])
    assert pair.computed([2], [plan(chain(1))]) == [1]


def test_tokens_are_drawn_with_the_numbers_of_their_nodes() -> None:
    pair = Pair()
    for slot, law in enumerate(("iid", "swor")):
        pair.drafter.admit(slot, admission(PROMPT, law, slot))
    trees = pair.propose([0, 1], [plan(sequences(3, 3)), plan(static((3, 2), 9))], [4, 7])
    for slot, (tree, start) in enumerate(zip(trees, (4, 7), strict=True)):
        noise = Noise(np.array([slot + 100]), np.zeros(1, np.int64), np.array([start]))
        assert tree.q is not None and len(tree.tokens) == 9
        for node, token in enumerate(tree.tokens.tolist()):
            mass = tree.q[tree.q_rows[[node]]].clone()
            if tree.q_minus[node] > 0:
                elders = np.flatnonzero(tree.parents[:node] == tree.parents[node])
                assert tree.q_minus[node] == pytest.approx(mass[0, tree.tokens[elders]].sum().item(), abs=1e-6)
                mass[0, tree.tokens[elders]] = 0.0
            assert draw_by_mass(mass, torch.from_numpy(noise.bits(Purpose.DRAFT, node))).tolist() == [token]


@pytest.mark.parametrize("law", ["auto", "iid", "swor", "hu", "topk", "shared"])
def test_a_model_that_says_nothing_drafts_nothing(law: str) -> None:
    pair = Pair()
    table = pair.drafter.model.loaded.model.get_input_embeddings().weight
    with torch.inference_mode():
        table[PROMPT[-1]] = torch.nan
    shared = {"shared_noise": True, "law": "auto"} if law == "shared" else {"law": law}
    pair.drafter.admit(0, admission(PROMPT, chain=resolve({}, VOCABULARY), **shared))
    pair.drafter.admit(1, admission(PROMPT[:-1]))
    none, some = pair.propose([0, 1], [plan(chain(2))] * 2, [0, 0])
    assert not len(none.tokens) and len(some.tokens)


@pytest.mark.parametrize("forms", FORMS)
def test_others_do_not_change_drafts(forms: str) -> None:
    together, alone = Pair(), Pair()
    wanted = FORMS[forms]
    texts = [PROMPT[slot:] for slot in range(len(wanted))]
    for slot, (law, _) in enumerate(wanted):
        together.drafter.admit(slot, admission(texts[slot], law, slot))
    all_slots = list(range(len(wanted)))
    whole = together.propose(all_slots, [one for _, one in wanted], all_slots)
    for slot, (law, one) in enumerate(wanted):
        alone.drafter.admit(5 - slot, admission(texts[slot], law, slot))
        noise = Noise(np.array([slot + 100]), np.zeros(1, np.int64), np.array([slot]))
        [tree] = alone.drafter.propose([5 - slot], [one], noise)
        for name in ("tokens", "parents", "laws"):
            assert getattr(tree, name).tolist() == getattr(whole[slot], name).tolist()
        assert np.allclose(tree.q_minus, whole[slot].q_minus, atol=CLOSE)


def test_forks_share_what_is_computed_and_go_on_independently() -> None:
    pair = Pair()
    pair.drafter.admit(0, admission(PROMPT, "hu"))
    form = plan(static((2, 2), 6))
    tree = pair.propose([0], [form], [0])[0]
    pair.drafter.fork(0, 3, Stream(103, 0))
    pair.drafter.check_integrity()
    texts = {0: [*PROMPT, *path(tree, 4), 1], 3: [*PROMPT, 2]}
    for slot, text in texts.items():
        pair.drafter.commit(slot, text[len(PROMPT) :])
    for slot, own in zip(texts, pair.propose([0, 3], [form] * 2, [1, 1]), strict=True):
        pair.check_rows(own, texts[slot])
    pair.drafter.free(0)
    pair.drafter.commit(3, [7])
    pair.check_rows(pair.propose([3], [form], [2])[0], [*texts[3], 7])
    pair.drafter.free(3)
    pair.drafter.free(3)
    assert pair.drafter.model.pages.in_use == 0


def test_without_room_others_give_way_and_then_there_are_no_drafts() -> None:
    pair = Pair(num_pages=1 + 10)  # 40 tokens
    texts = {slot: [slot + 1, *PROMPT] for slot in range(4)}  # a chain of 3 takes 4 pages
    for slot, text in texts.items():
        pair.drafter.admit(slot, admission(text, slot=slot))
    wanted = plan(chain(3))
    for slots in ([0, 1], [2, 3], [0, 3], [1, 2]):
        for slot, tree in zip(slots, pair.propose(slots, [wanted] * 2, [0, 0]), strict=True):
            assert len(tree.tokens) == 3
            pair.check_rows(tree, texts[slot])
    sizes = [len(tree.tokens) for tree in pair.propose([0, 1, 2, 3], [wanted] * 4, [0] * 4)]
    assert sorted(sizes) == [0, 0, 3, 3]
    pair.drafter.commit(0, [5] * 40)  # more than there is at all
    assert [len(tree.tokens) for tree in pair.propose([0, 1], [wanted] * 2, [40, 0])] == [0, 3]


def test_those_give_way_that_have_not_been_drafted_for_the_longest_time() -> None:
    pair = Pair(num_pages=1 + 9)
    for slot in range(3):
        pair.drafter.admit(slot, admission(PROMPT, slot=slot))
    one = [plan(chain(1))]
    for slot in (0, 1, 2, 0, 1):  # 3 pages each
        pair.propose([slot], one, [0])
    pair.drafter.commit(1, [5])
    assert pair.computed([1], one) == [1]  # a fourth page, and slot 2 has to go
    assert pair.computed([0], one) == [1]
    assert pair.computed([2], one) == [len(PROMPT)]


def test_a_device_without_memory_gives_no_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    pair.drafter.admit(0, admission(PROMPT))

    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(type(pair.drafter.model.forward), "__call__", full)
        assert not len(pair.propose([0], [plan(chain(2))], [0])[0].tokens)
    pair.check_rows(pair.propose([0], [plan(chain(2))], [0])[0], PROMPT)


@pytest.mark.parametrize("draft_tokens", [VOCABULARY - 9, VOCABULARY + 9])
def test_vocabularies_of_unequal_size(draft_tokens: int) -> None:
    pair = Pair(draft_tokens=draft_tokens)
    pair.drafter.admit(0, admission(PROMPT, "swor"))
    tree = pair.propose([0], [plan(static((4, 2), 12))], [0])[0]
    assert tree.q is not None and tree.q.shape[1] == VOCABULARY
    assert not tree.q[:, draft_tokens:].any()
    pair.check_rows(tree, PROMPT)


def test_a_context_that_is_shorter_than_the_targets() -> None:
    pair = Pair(max_position_embeddings=len(PROMPT) + 2)
    for slot, cut in enumerate((1, 0)):
        pair.drafter.admit(slot, admission(PROMPT[cut:], slot=slot))
    trees = pair.propose([0, 1], [plan(chain(6))] * 2, [0, 0])
    assert [len(tree.tokens) for tree in trees] == [4, 3]
    pair.drafter.commit(1, [1, 2, 3])
    assert not len(pair.propose([1], [plan(chain(6))], [3])[0].tokens)


# --- parts of the vocabulary


def ranking() -> TokenRanking:
    counts = np.random.default_rng(2).integers(0, 99, VOCABULARY)
    return TokenRanking.of(counts, {0, 1, 2}, "tokenizer")


def test_a_part_that_is_all_of_the_vocabulary_reproduces_the_whole_drafter() -> None:
    parts = {"all": VOCABULARY, "small": 20}
    pair = Pair(parts=parts, ranking=ranking())
    for slot, part in enumerate(("full", "all", "small")):
        pair.drafter.admit(slot, admission(PROMPT, "swor", slot=0, vocabulary=part))
    noise = Noise(np.full(3, 9), np.zeros(3, np.int64), np.zeros(3, np.int64))
    full, every, small = pair.drafter.propose([0, 1, 2], [plan(static((3, 2), 9))] * 3, noise)
    assert full.tokens.tolist() == every.tokens.tolist()
    assert full.q is not None and every.q is not None and small.q is not None
    assert torch.allclose(full.q, every.q, atol=1e-6)
    ids = ranking().subset(20).ids
    rest = np.setdiff1d(np.arange(VOCABULARY), ids)
    assert not small.q[:, rest].any() and torch.allclose(small.q.sum(1), torch.ones(len(small.q)))
    inside = full.q[0].clone()
    inside[rest] = 0.0
    assert torch.allclose(small.q[0], inside / inside.sum(), atol=1e-6)


@pytest.mark.parametrize(
    ("parts", "known", "message"),
    [
        ({"a": 20}, None, "no ranking"),
        ({"a": 2}, ranking(), "3 to 64 tokens, got 2"),
        ({"a": 99}, ranking(), "3 to 64 tokens, got 99"),
    ],
)
def test_parts_that_cannot_be_made(parts: dict[str, int], known: TokenRanking | None, message: str) -> None:
    with pytest.raises(SettingsError, match=f"draft_vocab.a: .*{message}"):
        Pair(parts=parts, ranking=known)


def test_a_head_that_is_no_matrix_cannot_be_cut() -> None:
    class Doubled(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return 2 * super().forward(hidden)

    pair = Pair()
    model = pair.drafter.model.loaded.model
    head = model.get_output_embeddings()
    odd = Doubled(head.in_features, head.out_features, bias=False)
    odd.weight = head.weight
    model.set_output_embeddings(odd)
    with torch.inference_mode(), pytest.raises(ValueError, match="do not follow from single rows"):
        pair.drafter.model.with_head(torch.arange(5))


# --- what requests ask for


def target_tokens(pair: Pair, chain_: Chain, count: int) -> list[int]:
    """What plain decoding with the draft model itself would give."""
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    stack.admit(0, chain_, seed=100, choice=3, prompt_ids=PROMPT)
    text = list(PROMPT)
    for position in range(count):
        row = pair.logits(text)[None]
        text += stack.sample(row, np.array([0]), np.array([position])).tokens.tolist()
    return text[len(PROMPT) :]


FIELDS = [
    {"temperature": 0.0},
    {"temperature": 0.8, "top_k": 12},
    {"temperature": 1.3, "draw": "gumbel", "logit_bias": {"5": 3.0}},
]


@pytest.mark.parametrize("fields", FIELDS)
def test_with_shared_noise_a_model_drafts_what_it_would_say(fields: dict[str, object]) -> None:
    pair = Pair()
    chain_ = resolve(fields, VOCABULARY)
    plain = target_tokens(pair, chain_, 12)
    own = replace(admission(PROMPT, chain=chain_, shared_noise=True), stream=Stream(100, 3))
    pair.drafter.admit(0, own)
    done = 0
    for form, keep in ((chain(3), 3), (chain(2), 1), (static((3, 1), 6), 2), (chain(2), 0)):
        noise = Noise(np.array([100]), np.array([3]), np.array([done]))
        [tree] = pair.drafter.propose([0], [plan(form)], noise)
        assert (tree.laws == Law.ONE_HOT).all() and tree.q is None
        first = [int(tree.tokens[0])]
        node = 0
        while (below := np.flatnonzero(tree.parents == node)).size:
            node = int(below[0])
            first.append(int(tree.tokens[node]))
        assert first == plain[done : done + len(first)]
        for place in {-1, *tree.parents.tolist()}:
            assert len(set(tree.tokens[tree.parents == place].tolist())) == (tree.parents == place).sum()
        pair.drafter.commit(0, plain[done : done + keep + 1])
        done += keep + 1


def test_siblings_of_a_shared_gumbel_draw_are_its_next_ones() -> None:
    pair = Pair()
    chain_ = resolve({"draw": "gumbel"}, VOCABULARY)
    pair.drafter.admit(0, admission(PROMPT, chain=chain_, shared_noise=True))
    [tree] = pair.propose([0], [plan(static((4,), 4))], [0])
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    stack.admit(0, chain_, seed=100, choice=0, prompt_ids=PROMPT)
    row, found = pair.logits(PROMPT)[None].clone(), []
    for _ in range(4):  # the draw again and again, without what it has picked
        found += stack.sample(row, np.array([0]), np.array([0])).tokens.tolist()
        row[0, found[-1]] = -torch.inf
    assert tree.tokens.tolist() == found


def test_rows_are_shaped_as_the_request_asks() -> None:
    pair = Pair()
    chain_ = resolve({"temperature": 0.5, "top_k": 3, "logit_bias": {"7": -100.0}}, VOCABULARY)
    pair.drafter.admit(0, admission(PROMPT, "swor", chain=chain_))
    [tree] = pair.propose([0], [plan(static((5,), 5))], [0])
    row = pair.logits(PROMPT)[None]
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    stack.admit(0, chain_, seed=0, choice=0, prompt_ids=PROMPT)
    expected = stack.shape(row, np.array([0]), np.array([0]))[0].softmax(1)[0]
    assert tree.q is not None and torch.allclose(tree.q[0], expected, atol=CLOSE)
    assert len(tree.tokens) == 3  # as many as are possible


def test_nothing_is_drafted_behind_an_ending() -> None:
    pair = Pair()
    pair.drafter.admit(0, admission(PROMPT))
    tokens = pair.propose([0], [plan(chain(6))], [0])[0].tokens.tolist()
    ending = tokens[2]
    pair.drafter.admit(0, admission(PROMPT, ending_ids=frozenset({ending})))
    cut = pair.propose([0], [plan(chain(6))], [0])[0].tokens.tolist()
    assert cut == tokens[: tokens.index(ending) + 1]


def test_chains_stop_where_they_are_not_confident() -> None:
    """Before a token is drawn, by its row alone: the tokens before it are those of the whole chain."""
    pair = Pair()
    pair.drafter.admit(0, admission(PROMPT))
    [whole] = pair.propose([0], [plan(chain(6))], [0])
    assert whole.q is not None
    tops = whole.q.amax(1).tolist()
    gains = tuple(0.95 ** (depth + 1) for depth in range(6))
    reached = (1.0, *gains)
    stop = next((depth for depth in range(6) if reached[depth] * tops[depth] < 0.15), 6)
    assert 0 < stop < 6  # of this model; else the test says nothing
    [cut] = pair.propose([0], [replace(plan(chain(6)), gains=gains)], [0])
    assert cut.tokens.tolist() == whole.tokens[:stop].tolist()


def test_memory_is_divided_between_both_models() -> None:
    target, draft = loaded(tiny_model("llama")), loaded(tiny_model("llama", num_hidden_layers=2))
    settings = EngineSettings(max_model_len=32, page_size=4, kv_bytes=2**20)
    alone, both = sizes(target, settings), sizes(target, settings, draft)
    assert both.num_pages - 1 == (alone.num_pages - 1) * 4 // 6  # layers


def test_costs_are_measured_and_nobody_is_left() -> None:
    pair = Pair()
    cost = pair.drafter.cost()
    assert cost.per_depth and (cost.latency.seconds([1, 2, 6]) > 0).all()
    assert pair.drafter.model.pages.in_use == 0
    pair.drafter.check_integrity()


def test_the_embedded_draft_model_drafts_its_own_greedy_text() -> None:
    settings = EngineSettings(max_model_len=128, max_seqs=4)
    target = load(locate(TARGET), settings)
    own = load(locate(DRAFT), settings)
    drafter = DraftModel(own, settings, target, sizes(target, settings))
    assert drafter.model.forward.program is not None
    chain_ = resolve({"temperature": 0.0}, target.vocab_size)
    prompt = list(range(40, 60))
    drafter.admit(0, admission(prompt, chain=chain_))
    reference = load(locate(DRAFT), settings).model
    reference.set_attn_implementation("eager")
    text = list(prompt)
    with torch.inference_mode():
        for _ in range(8):
            logits = reference(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
            text.append(int(logits[: target.vocab_size].argmax()))
    noise = Noise(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))
    [tree] = drafter.propose([0], [plan(chain(4))], noise)
    assert tree.tokens.tolist() == text[20:24] and tree.q is None
    drafter.commit(0, text[20:25])
    [tree] = drafter.propose([0], [plan(chain(3))], noise)
    assert tree.tokens.tolist() == text[25:28]


def test_choices_of_one_prompt_compute_it_once() -> None:
    pair, alone = Pair(), Pair()
    for drafter in (pair.drafter, alone.drafter):
        drafter.admit(0, DraftAdmission(tokens=PROMPT, prompt_length=len(PROMPT)))
    for slot in (1, 2, 3):
        pair.drafter.fork(0, slot, Stream(1, slot))
    slots, plans = [0, 1, 2, 3], [DraftPlan(2, 2, chain(2))] * 4
    first = [5, 6, 7, 8]
    for slot in slots:
        pair.drafter.commit(slot, [first[slot]])
    rows = pair.computed(slots, plans)
    assert sum(rows) <= len(PROMPT) + 4 * 2 + 4  # not four times the prompt
    trees = pair.propose(slots, plans, [1] * 4)
    late = DraftAdmission(tokens=[*PROMPT, first[2]], prompt_length=len(PROMPT))
    alone.drafter.admit(2, late)
    [expected] = alone.propose([2], plans[:1], [1])
    assert trees[2].tokens.tolist() == expected.tokens.tolist()
    assert torch.allclose(trees[2].q[trees[2].q_rows], expected.q[expected.q_rows], atol=CLOSE)
    for slot in slots:
        pair.drafter.free(slot)
    pair.drafter.check_integrity()
