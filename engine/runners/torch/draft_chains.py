"""Chains of drafts without Python between their tokens, for a small model on a CPU: passes and draws in one call.

For requests whose rows nothing shapes but a temperature. It drafts what `DraftRows` would, pass by pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.runners.torch.draft_head import DraftHead
from engine.runners.torch.draft_rows import DraftRows, Growing
from engine.runners.torch.draft_slot import DraftSlot
from engine.runners.torch.lanes import Lane, regular_lanes
from engine.runners.torch.paged_model import PagedModel
from engine.runners.torch.script import ScriptError
from samplers.chain import Chain
from spec_decode.controller import CONFIDENT
from spec_decode.drafters.growing_tree import Place
from spec_decode.tree_forms import chain

SINGLE = ("auto", "iid", "swor", "hu")  # laws that are one where a place has one child
MISSING = 2  # tokens: the last one of a draft that was accepted as a whole, and the one that followed
_NOTHING, _NO_IDS = torch.empty(0), torch.empty(0, dtype=torch.int64)


class DraftChains:
    """Of one model and one of its heads."""

    def __init__(self, model: PagedModel, head: DraftHead) -> None:
        """Raises ScriptError where the model's passes are no single script."""
        program = head.forward.program
        if program is None or program.script is None:
            raise ScriptError("the forward pass is not scripted")
        if any(not spec.is_full for spec in model.loaded.layers):
            raise ScriptError("layers with windows")
        self._model = model
        self._run = program.script.chains()
        self._vocabulary = head.vocabulary
        ids = torch.from_numpy(head.vocabulary.ids)
        self._known = _NO_IDS if torch.equal(ids, torch.arange(len(ids))) else ids

    def takes(self, one: Growing, slot: DraftSlot) -> bool:
        """Whether this tree is a chain that it can draft. The slot has room for the draft."""
        form = one.tree.form
        if not form or form != chain(len(form)) or one.tree.deepest < len(form):
            return False
        if len(slot.places()) != 1:
            return False
        asked = slot.admission.chain
        greedy = asked is not None and asked.greedy
        return (greedy or one.law in SINGLE) and (asked is None or temperature_of(asked) is not None)

    def grow(self, members: Sequence[tuple[Growing, Place, DraftSlot]], logits: Tensor | None, rows: DraftRows) -> None:
        """Draft these chains, all of which are drawn or none. logits: [B, V] fp32 at their roots; None: the last tokens
        of all of them, at most `MISSING`, are computed as well."""
        drawn = members[0][0].law in SINGLE
        depth = max(len(one.tree.form or ()) for one, _, _ in members)
        roots = [len(slot.tokens) for _, _, slot in members]  # tokens that the root's row sees
        slots = np.zeros((depth, len(members)), np.int64)  # the dummy page takes what is behind shorter drafts
        reached = np.full((depth, len(members)), np.inf)
        longest = []
        for b, (one, _, slot) in enumerate(members):
            size = len(one.tree.form or ())
            [(start, _)] = slot.places()
            longest.append(Lane(b, start, roots[b] + size - 1))
            slots[:size, b] = start + roots[b] - 1 + np.arange(size)
            if one.tree.gains is not None:
                reached[:size, b] = [1.0, *one.tree.gains[: size - 1]]
        lanes, places, lengths, ends = [], [], [], []
        for batch in regular_lanes(tuple(longest), self._model.pool.num_slots):
            own = [lane.row for lane in batch]
            stride = batch[1].start - batch[0].start if len(batch) > 1 else 0
            lanes.append([len(batch), 1, batch[0].start, stride, 0])
            places.append(_NOTHING if own == list(range(len(members))) else torch.tensor(own))
            lengths.append(torch.tensor([roots[b] for b in own]))
            ends.append(torch.tensor([lane.length for lane in batch]))
        missing = 1 if logits is not None else max(slot.missing for _, _, slot in members)
        before, behind = (
            np.zeros((missing - 1, len(members)), np.int64),
            np.zeros((missing - 1, len(members)), np.int64),
        )
        for b, (_, _, slot) in enumerate(members):
            for back in range(2, slot.missing + 1) if logits is None else ():
                before[-back + 1, b] = slot.tokens[-back]
                behind[-back + 1, b] = slots[0, b] - back + 1
        tokens, alive, q = self._run(
            torch.from_numpy(before),
            torch.from_numpy(behind),
            torch.tensor([slot.tokens[-1] for _, _, slot in members]),
            _NOTHING if logits is None else self._columns(logits),
            torch.tensor(roots) - 1,
            torch.from_numpy(slots),
            lanes,
            places,
            lengths,
            ends,
            rows.bits([one for one, _, _ in members], depth) if drawn else _NO_IDS,
            torch.tensor([[temperature_of(slot.admission.chain) or 1.0] for _, _, slot in members]),
            self._known,
            torch.from_numpy(reached) if np.isfinite(reached).any() else _NOTHING,
            CONFIDENT,
            len(self._vocabulary),
        )
        if logits is None:
            for _, _, slot in members:
                slot.chunk(slot.missing)  # has been computed
        whole = len(self._vocabulary) == self._vocabulary.vocabulary
        at = rows.keep(q if whole else self._vocabulary.spread(q)) if drawn else 0
        for level, (chosen, going) in enumerate(zip(tokens.tolist(), alive.tolist(), strict=True)):
            for b, (one, root, slot) in enumerate(members):
                if len(one.tree.tokens) < level or level == len(one.tree.form or ()):
                    continue  # it has ended
                if level:
                    slot.draft_chunk([level - 1])  # has been computed
                place = root if level == 0 else next(iter(one.tree.wave()), None)
                if place is not None and going[b]:
                    one.tree.add(place, [chosen[b]], int(drawn), at + level * len(members) + b)

    def _columns(self, logits: Tensor) -> Tensor:
        """Those of the head's tokens. logits: [B, V]."""
        return logits if not len(self._known) else logits[:, self._known]


def temperature_of(asked: Chain | None) -> float | None:
    """What all logits are divided by; None: something else shapes the row."""
    if asked is None or not asked.stages:
        return 1.0
    if asked.greedy or len(asked.stages) > 1 or asked.stages[0].name != "temperature":
        return None
    values = asked.stages[0].values
    return None if values["dynatemp_range"] else float(values["temperature"])
