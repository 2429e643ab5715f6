"""Arithmetic sampling: each choice decodes a code instead of drawing, and the codes of a request are spread evenly.

Every choice alone is an exact sample, whatever stages come before; together they are stratified, so n choices show
more different outputs and estimates from them vary less. Vilnis et al., arXiv 2210.15458.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samplers.code import BOOKS, Code, fresh, resumed
from samplers.contract import Admission, Param, Rows, Shape, State
from samplers.quantise import weights_of
from samplers.registry import DRAWS
from samplers.rng import GROUP_CHOICE, Noise, Purpose, philox
from samplers.stage import BaseDraw

Numbers = npt.NDArray[np.int64]
ORDERS = ("id", "seeded")


@DRAWS.register
class Arithmetic(BaseDraw):
    """The token whose interval of cumulative weights holds the slot's code. Rows with several drafts of one slot are
    a chain: each is drawn as if the row before it had been accepted."""

    name = "arithmetic"
    params = (
        Param("codebook", str, "lattice", choices=(*BOOKS, "iid")),
        Param("vocab_order", str, "id", choices=ORDERS),
    )
    shared_noise = True  # equal prefixes must see equal rows, or the strata would not be strata of one distribution
    resumable = False

    def new_state(self, shape: Shape) -> State:
        return Codes(shape.slots)

    def pick(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, Codes)
        seeded = (params["vocab_order"] == ORDERS.index("seeded")).cpu().numpy()
        order = state.orders(logits, seeded, rows.noise) if seeded.any() else None
        weights = weights_of(logits)
        edges = (weights if order is None else weights.gather(1, order)).cumsum_(1)  # [R, V], in this order of tokens
        tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        slots = np.array(rows.slots.tolist())
        for level in _levels(slots, rows.noise.positions):
            codes = [state.behind(*at) for at in zip(slots[level], rows.noise.positions[level], strict=True)]
            targets = torch.tensor([code.target() for code in codes], device=logits.device)
            mine = torch.from_numpy(level).to(logits.device)
            inner = edges if len(level) == len(slots) else edges[mine]
            places = torch.searchsorted(inner, targets.unsqueeze(1), right=True)
            # three integers per row travel to the host
            found = torch.cat([places, inner.gather(1, (places - 1).clamp(min=0)), inner.gather(1, places)], 1)
            if order is not None:
                found[:, :1] = order[mine].gather(1, places)
            found[:, 1:2].masked_fill_(places == 0, 0)
            tokens[mine] = found[:, 0]
            state.note(slots[level], codes, found.tolist(), rows.noise[level])
        return tokens


class _Decoded(NamedTuple):
    """A token that has been picked, and the code if it is accepted."""

    position: int
    token: int
    code: Code


class Codes:
    """The code of each slot, on the host. A pick is noted, `accept` makes it count.

    A token other than the one picked (forced from outside) consumes nothing of the code. `fork`: parent and child go
    on from one code, so they decode equal tokens from equal rows until the words appended from their own streams
    decide, 64 to 96 bits later; children that must differ at once need a draw of their own.
    """

    def __init__(self, slots: int) -> None:
        self._codes: list[Code | None] = [None] * slots
        self.orders = _Orders(slots)
        self._ahead: list[tuple[_Decoded, ...]] = [()] * slots  # picked and not yet accepted, in order

    def admit(self, slot: int, admission: Admission) -> None:
        done = len(admission.output_ids)
        if done:
            self._codes[slot] = resumed(admission.stream, done)
        else:
            self._codes[slot] = fresh(admission.values["codebook"], admission.stream, admission.n)
        self._ahead[slot] = ()

    def behind(self, slot: int, position: int) -> Code:
        """The slot's code for `position`, behind what has been picked for earlier ones; later picks are dropped."""
        self._ahead[slot] = tuple(one for one in self._ahead[slot] if one.position < position)
        code = self._ahead[slot][-1].code if self._ahead[slot] else self._codes[slot]
        assert code is not None, "the slot has not been admitted"
        return code

    def note(self, slots: Numbers, codes: list[Code], found: list[list[int]], noise: Noise) -> None:
        """Note one pick for each of these distinct slots. found: [R] of (token, weights before it, weights with it)."""
        codes = [code.narrowed(before, upto) for code, (_, before, upto) in zip(codes, found, strict=True)]
        short = np.flatnonzero([code.is_short for code in codes])
        if len(short):
            few = noise[short]
            words = philox(few.keys, few.choices, few.positions, 0, Purpose.CODE_BITS)
            for row, *pair in zip(short, words[0].tolist(), words[1].tolist(), strict=True):
                codes[row] = codes[row].extended(pair)
        for slot, position, (token, _, _), code in zip(slots, noise.positions, found, codes, strict=True):
            self._ahead[slot] += (_Decoded(position, token, code),)

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
            ahead = self._ahead[slot]
            picked = bool(ahead) and ahead[0].token == token
            if picked:
                self._codes[slot] = ahead[0].code
            self._ahead[slot] = ahead[1:] if picked else ()

    def snapshot(self, slot: int) -> tuple[Code | None, tuple[_Decoded, ...]]:
        return self._codes[slot], self._ahead[slot]

    def restore(self, slot: int, snapshot: tuple[Code | None, tuple[_Decoded, ...]]) -> None:
        self._codes[slot], self._ahead[slot] = snapshot

    def fork(self, parent: int, child: int) -> None:
        self._codes[child], self._ahead[child] = self._codes[parent], self._ahead[parent]

    def free(self, slot: int) -> None:
        self._codes[slot], self._ahead[slot] = None, ()


class _Orders:
    """Orders of the tokens that depend only on a request's seed and the position. The latest are kept, as many as
    there are slots: all choices of a request ask for the same, and not in one call where steps are cut into blocks."""

    def __init__(self, slots: int) -> None:
        self._most = slots
        self._kept: dict[tuple[int, int], Tensor] = {}

    def __call__(self, logits: Tensor, seeded: npt.NDArray[np.bool_], noise: Noise) -> Tensor:
        """[R, V] int64: the token at each place; in rows that are not seeded, its own id."""
        wanted = list(zip(noise.keys[seeded].tolist(), noise.positions[seeded].tolist(), strict=True))
        missing = [one for one in dict.fromkeys(wanted) if one not in self._kept]
        if missing:
            self._kept |= zip(missing, self._made(missing, logits), strict=True)
        order = torch.arange(logits.shape[1], device=logits.device).repeat(len(logits), 1)
        order[torch.from_numpy(seeded).to(logits.device)] = torch.stack([self._kept[one] for one in wanted]).long()
        for oldest in list(self._kept)[: -self._most]:
            del self._kept[oldest]
        return order

    @staticmethod
    def _made(missing: list[tuple[int, int]], logits: Tensor) -> tuple[Tensor, ...]:
        keys, positions = np.array(missing).T[:, :, None]
        words = philox(keys, GROUP_CHOICE, positions, np.arange(logits.shape[1]), Purpose.VOCAB_PERM)
        numbers = words[0] << np.uint64(32) | words[1]
        places = numbers.argsort(1)  # five times as fast as a stable sort, and the same unless two numbers are equal
        ranked = np.take_along_axis(numbers, places, 1)
        if (ranked[:, 1:] == ranked[:, :-1]).any():
            places = numbers.argsort(1, kind="stable")
        return torch.from_numpy(places.astype(np.int32)).to(logits.device).unbind()


def _levels(slots: Numbers, positions: Numbers) -> list[Numbers]:
    """Row indices, by how many earlier positions of the same slot there are. Raises ValueError for siblings: of two
    rows at one position nothing says which the next belongs to."""
    by_slot = np.lexsort((positions, slots))
    same = slots[by_slot][1:] == slots[by_slot][:-1]
    if not same.any():
        return [np.arange(len(slots))]
    if (same & (positions[by_slot][1:] == positions[by_slot][:-1])).any():
        raise ValueError("arithmetic sampling follows chains of drafts, not trees")
    depth = np.zeros(len(slots), np.int64)
    for i in range(1, len(slots)):
        if same[i - 1]:
            depth[by_slot[i]] = depth[by_slot[i - 1]] + 1
    return [np.flatnonzero(depth == level) for level in range(int(depth.max()) + 1)]
