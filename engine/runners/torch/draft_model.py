"""A second, smaller model that drafts for the requests of an engine, in its thread (spec_decode.md 6.1 to 6.3).

It has page tables and a pool of its own. All trees of a step grow together, one forward pass per wave of places; the
first one also computes the tokens that have been committed since the last draft.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from torch import Tensor

from engine.pages import OutOfPages
from engine.runners.torch.costs import sweep
from engine.runners.torch.draft_chains import MISSING, DraftChains
from engine.runners.torch.draft_head import DraftHead
from engine.runners.torch.draft_passes import DraftPasses
from engine.runners.torch.draft_rows import DraftRows, Growing, Wave, is_certain, law_of
from engine.runners.torch.draft_slot import DraftSlot
from engine.runners.torch.loader import LoadedModel, Sizes, load
from engine.runners.torch.paged_model import PagedModel
from engine.runners.torch.script import ScriptError
from engine.settings import EngineSettings, SettingsError
from samplers.chain import resolve
from samplers.rng import Noise, Stream
from samplers.stack import SamplerStack
from spec_decode.contract import DraftAdmission, DraftPlan, DraftTree
from spec_decode.cost_model import DraftCost, Latency
from spec_decode.draft_vocabulary import DraftVocabulary
from spec_decode.drafters.growing_tree import GrowingTree
from spec_decode.token_ranking import RankingError, TokenRanking
from spec_decode.tree_forms import chain

log = logging.getLogger(__name__)
FULL = "full"
_SWEEP_DEPTH, _SWEEP_TEXT, _WARM_UPS = 5, 64, 6  # _SWEEP_TEXT: tokens


def load_beside(model_id: str, settings: EngineSettings) -> LoadedModel:
    """A draft model from a folder or hub id, to be taken into account when memory is divided (`loader.sizes`). It has
    the target's tokenizer, which is for the caller to check; its context may be shorter, longer texts get no drafts.

    settings: the target's. Raises UnsupportedModelError, SettingsError or OSError.
    """
    try:
        return load(model_id, replace(settings, max_model_len=None))
    except torch.OutOfMemoryError as error:
        raise SettingsError(f"draft_model {model_id} does not fit into the device's memory") from error


class DraftModel:
    """A `Drafter`."""

    @torch.inference_mode()
    def __init__(
        self,
        loaded: LoadedModel,
        settings: EngineSettings,
        target: LoadedModel,
        sizes: Sizes,
        ranking: TokenRanking | None = None,
    ) -> None:
        """With a pool for as many tokens as the target's.

        loaded: of `load_beside`; settings, sizes: the target's; ranking: of its tokens, for the settings' parts of the
        vocabulary. Raises UnsupportedModelError or SettingsError.
        """
        if loaded.device != target.device:
            raise SettingsError(f"the draft model is on {loaded.device}, the model on {target.device}")
        loaded = replace(loaded, max_model_len=min(loaded.max_model_len, target.max_model_len))
        try:
            self.model = PagedModel(loaded, sizes, settings.attention, settings.replay)
        except torch.OutOfMemoryError as error:
            raise SettingsError("there is no memory left for the draft model's keys and values") from error
        self._heads = _heads(self.model, target.vocab_size, settings.draft_vocab, ranking)
        self._stack = SamplerStack(sizes.max_seqs, target.vocab_size, loaded.device, target.facts)
        self._as_they_are = resolve({}, target.vocab_size)
        self._slots: dict[int, DraftSlot] = {}  # those that were drafted for last come last
        self._passes = DraftPasses(self.model, self._slots, sizes.max_batch_tokens)
        self._max_slots = sizes.max_seqs
        self._scripted: dict[str, DraftChains] = {}  # by part of the vocabulary; none: all goes pass by pass
        try:
            self._scripted = {part: DraftChains(self.model, head) for part, head in self._heads.items()}
        except ScriptError as reason:
            log.info("chains are drafted pass by pass: %s", reason)

    @torch.inference_mode()
    def admit(self, slot: int, admission: DraftAdmission) -> None:
        self.free(slot)
        self._slots[slot] = DraftSlot(self.model, admission)

    @torch.inference_mode()
    def commit(self, slot: int, tokens: Sequence[int]) -> None:
        self._slots[slot].commit(tokens)

    @torch.inference_mode()
    def fork(self, parent: int, child: int, stream: Stream) -> None:
        self.free(child)
        self._slots[child] = self._slots[parent].fork(stream)

    def free(self, slot: int, keep: bool = False) -> None:
        """Harmless for a slot that nobody has."""
        known = self._slots.pop(slot, None)
        if known is not None:
            known.release()
            if known.sampled:
                self._stack.free(slot)

    @torch.inference_mode()
    def propose(self, slots: Sequence[int], plans: Sequence[DraftPlan], noise: Noise) -> list[DraftTree]:
        for slot in slots:
            self._slots[slot] = self._slots.pop(slot)
            self._prepare(slot)
        try:
            return self._propose(slots, plans, noise)
        except Exception as error:
            for slot in slots:  # of whose KV nobody can be sure
                self._slots[slot].release()
            if not isinstance(error, torch.OutOfMemoryError):
                raise
            log.warning("no drafts for %d requests: %s", len(slots), error)
            return [DraftTree.one_hot([], []) for _ in slots]

    def cost(self) -> DraftCost:
        """Seconds of a level, measured; to be called before anybody is admitted."""
        for _ in range(_WARM_UPS):  # TorchScript compiles what it has seen a few times
            self._chains(1, _SWEEP_DEPTH)
            self._chains(1, 1)
        seconds = sweep(lambda count: self._chains(count, _SWEEP_DEPTH), max(self._max_slots, 2))
        shallow = sweep(lambda count: self._chains(count, 1), 2)
        for slot in list(self._slots):
            self.free(slot)
        text = min(_SWEEP_TEXT, self.model.loaded.max_model_len - _SWEEP_DEPTH)
        read = median(self._first_chain(text) for _ in range(_WARM_UPS))
        level = max(seconds[1] - shallow[1], 0.0) / (_SWEEP_DEPTH - 1)
        fixed = max(shallow[1] - level, 0.0)
        levels = {rows: max(whole - fixed, level) / _SWEEP_DEPTH for rows, whole in seconds.items()}
        return DraftCost(Latency(levels), True, fixed, max(read - shallow[1], 0.0) / text)

    def check_integrity(self) -> None:
        """Raises `engine.pages.IntegrityError` when pages and slots disagree."""
        self.model.pages.check_integrity([slot.branch for slot in self._slots.values()])

    def _propose(self, slots: Sequence[int], plans: Sequence[DraftPlan], noise: Noise) -> list[DraftTree]:
        self._share_prompts(slots)
        growing = [self._growing(at, slot, plan) for at, (slot, plan) in enumerate(zip(slots, plans, strict=True))]
        trees = [DraftTree.one_hot([], []) for _ in slots]
        lanes = max(plan.max_nodes for plan in plans)
        by_part: dict[str, list[Growing]] = {}
        for one in self._with_room(growing):
            by_part.setdefault(self._slots[one.slot].admission.vocabulary, []).append(one)
        for part, members in by_part.items():
            rows = DraftRows(self._stack, noise, lanes)
            self._grow(part, members, rows)
            q = rows.q()
            for one in members:
                trees[one.at] = one.tree.finish(q)
        return trees

    def _prepare(self, slot: int) -> None:
        """Of requests that are never drafted for the samplers need not know: none of theirs remembers anything."""
        known = self._slots[slot]
        if not known.sampled:
            admission, known.sampled = known.admission, True
            self._stack.admit(
                slot,
                self._as_they_are if admission.chain is None else admission.chain,
                seed=admission.stream.key,
                choice=admission.stream.choice,
                prompt_ids=admission.tokens[: admission.prompt_length],
                output_ids=admission.tokens[admission.prompt_length :],
                ending_ids=admission.ending_ids,
            )

    def _share_prompts(self, slots: Sequence[int]) -> None:
        """Choices of one prompt compute it once, when the first of them are drafted for."""
        families: dict[object, list[int]] = {}
        for slot in slots:
            if not self._slots[slot].computed:
                families.setdefault(self._slots[slot].family, []).append(slot)
        for family, members in families.items():
            relatives = (one for one in self._slots.values() if one.family is family and one.computed)
            origin = next(relatives, None)
            length = len(self._slots[members[0]].admission.tokens) - 1
            if origin is None and len(members) > 1 and 0 < length <= self.model.loaded.max_model_len:
                try:
                    self._passes.prefix(self._heads[FULL], members[0], length)
                except OutOfPages:
                    self._slots[members[0]].release()
                else:
                    origin = self._slots[members.pop(0)]
            if origin is not None:
                for slot in members:
                    self._slots[slot].adopt(origin)

    def _growing(self, at: int, slot: int, plan: DraftPlan) -> Growing:
        known = self._slots[slot]
        law = law_of(known.admission)
        deepest = self.model.loaded.max_model_len - len(known.tokens)
        return Growing(at, slot, law, GrowingTree(plan, is_certain(law), known.admission.ending_ids, deepest))

    def _with_room(self, growing: Sequence[Growing]) -> list[Growing]:
        """Those that have pages for what they are to compute, at the cost of requests that are not drafted for now,
        first of those that have not been for the longest time."""
        proposing = {one.slot for one in growing}
        idle = [known for slot, known in self._slots.items() if slot not in proposing and known.computed]
        fitting = []
        for one in growing:
            known = self._slots[one.slot]
            while known.tokens:
                try:
                    known.reserve(one.tree)
                    fitting.append(one)
                    break
                except OutOfPages:
                    if not idle:
                        known.release()
                        break
                    idle.pop(0).release()
        return fitting

    def _grow(self, part: str, growing: Sequence[Growing], rows: DraftRows) -> None:
        head, scripted = self._heads[part], self._scripted.get(part)
        wave = [(one, place) for one in growing for place in one.tree.wave()]
        wave, _ = self._without_chains(scripted, wave, None, rows)
        if wave:
            logits = self._passes.roots(head, [one.slot for one, _ in wave])
            wave, logits = self._without_chains(scripted, wave, logits, rows)
        while wave:
            rows.grow(wave, logits)
            wave = [(one, place) for one in growing for place in one.tree.wave()]
            if wave:
                logits = self._passes.nodes(head, [(one.slot, place.node) for one, place in wave])

    def _without_chains(
        self, scripted: DraftChains | None, wave: Wave, logits: Tensor | None, rows: DraftRows
    ) -> tuple[Wave, Tensor | None]:
        """Draft those that are simple chains in one go; what is left of the wave, and its rows.

        logits: [P, V] fp32 at the roots; None: they have not been computed, and only those are drafted that lack
        little else.
        """
        if scripted is None:
            return wave, logits
        taken = [at for at, (one, _) in enumerate(wave) if scripted.takes(one, self._slots[one.slot])]
        if logits is None:
            taken = [at for at in taken if self._slots[wave[at][0].slot].missing <= MISSING]
        for certain in (True, False):
            members = [at for at in taken if is_certain(wave[at][0].law) == certain]
            if members:
                own = logits if logits is None or len(members) == len(wave) else logits[members]
                scripted.grow([(*wave[at], self._slots[wave[at][0].slot]) for at in members], own, rows)
        left = [at for at in range(len(wave)) if at not in taken]
        return [wave[at] for at in left], logits if logits is None or not taken else logits[left]

    def _chains(self, count: int, depth: int) -> None:
        """Draft a chain for each of so many requests; more than there are slots for come one after the other."""
        for first in range(0, count, self._max_slots):
            slots = range(min(count - first, self._max_slots))
            for slot in slots:
                if slot not in self._slots:
                    self.admit(slot, DraftAdmission(tokens=(0,), prompt_length=1))
            noise = Noise(np.arange(len(slots)), np.zeros(len(slots), np.int64), np.zeros(len(slots), np.int64))
            self.propose(slots, [DraftPlan(depth, depth, chain(depth))] * len(slots), noise)

    def _first_chain(self, text: int) -> float:
        """Seconds of a chain of one token behind a text of so many, none of which has been seen."""
        self.admit(0, DraftAdmission(tokens=(0,) * text, prompt_length=text))
        began = time.perf_counter()
        self._chains(1, 1)
        seconds = time.perf_counter() - began
        self.free(0)
        return seconds


def _heads(
    model: PagedModel, vocabulary: int, parts: Mapping[str, int], ranking: TokenRanking | None
) -> dict[str, DraftHead]:
    """By the name of the part that they know of the target's tokens, of which there are `vocabulary`. Raises
    SettingsError."""
    heads = {FULL: DraftHead.whole(model, vocabulary)}
    for name, size in parts.items():
        if ranking is None:
            raise SettingsError(f"draft_vocab.{name}: there is no ranking of the tokens")
        try:
            ids = ranking.subset(size).ids
            heads[name] = DraftHead.part(model, DraftVocabulary(ids[ids < vocabulary], vocabulary))
        except (RankingError, ValueError) as error:
            raise SettingsError(f"draft_vocab.{name}: {error}") from error
    return heads
