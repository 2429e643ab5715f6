"""The controller against brute force over all allocations, and in simulated traffic."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from spec_decode.acceptance import RATES, Verified
from spec_decode.controller import LEAST, PROBE_NODES, Candidate, Controller, Load, confident
from spec_decode.cost_model import CostModel, DraftCost, Latency
from spec_decode.tree_forms import chain, static

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
Cost = Callable[[float], float]


def costs(verify: Cost, draft: float = 0.0, per_depth: bool = True) -> CostModel:
    table = Latency({rows: verify(rows) for rows in ROWS})
    return CostModel({1000: table}, {"drafter": DraftCost(Latency({1: draft, 512: draft}), per_depth)})


def load(batch: int, max_rows: int = 512) -> Load:
    return Load(batch, batch, 1000.0, max_rows)


def teach(controller: Controller, request: int, accepted: int, rejected: int, rounds: int = 30) -> None:
    """Give a request a rate of its own: so many accepted first drafts for so many rejected ones."""
    candidate = Candidate(request, "drafter", chain(1))
    for _ in range(rounds):
        for path in [[0]] * accepted + [[]] * rejected:
            controller.observe(candidate, Verified(chain(1), path))


def simple(batch: int, depth: int = 8) -> list[Candidate]:
    return [Candidate(request, "drafter", chain(depth)) for request in range(batch)]


def lengths(controller: Controller, batch: int, depth: int = 8) -> list[int]:
    return [len(nodes) for nodes in controller.choose(simple(batch, depth), load(batch)).nodes]


@pytest.mark.parametrize("slope", [0.0, 0.02, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("draft", [0.0, 0.05, 0.2, 0.6, 1e9])
@pytest.mark.parametrize("accepted", [0, 1, 3, 9])
def test_one_request_gets_the_length_that_the_closed_form_says(slope: float, draft: float, accepted: int) -> None:
    controller = Controller(costs(lambda rows: 1 + slope * rows, draft))
    controller.admit(0)
    teach(controller, 0, accepted, 2)
    gains = controller.gains(Candidate(0, "drafter", chain(12)))
    lengths = np.arange(13)
    rates = (1 + np.append(0, gains.cumsum())) / (lengths * draft + 1 + slope * (lengths + 1))
    choice = controller.choose(simple(1, 12), load(1))
    if rates.max() >= LEAST * rates[0]:
        assert len(choice.nodes[0]) == rates.argmax()
        assert choice.gain == pytest.approx(rates.max() / rates[0])
    else:
        assert choice.gain == 1.0 and len(choice.nodes[0]) <= PROBE_NODES


def brute_force(forms: Sequence[Sequence[float]], draft: float, verify: Latency) -> float:
    """The most tokens per second with any number of nodes for each request; their gains fall."""
    best, seconds = 0.0, verify.seconds(range(30)).tolist()
    for sizes in itertools.product(*(range(len(gains) + 1) for gains in forms)):
        tokens = len(forms) + sum(sum(gains[:size]) for gains, size in zip(forms, sizes, strict=True))
        best = max(best, tokens / (max(sizes) * draft + seconds[len(forms) + sum(sizes)]))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_a_batch_gets_the_best_of_all_allocations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slope, knee = rng.uniform(0, 0.3), rng.uniform(2, 12)
    table = {rows: 1 + slope * max(rows - knee, 0) for rows in ROWS}
    for draft in (0.0, rng.uniform(0.02, 0.5)):
        controller = Controller(costs(lambda rows: table[int(rows)], draft))
        for request in range(4):
            controller.admit(request)
            teach(controller, request, int(rng.integers(0, 6)), int(rng.integers(0, 4)), 10)
        forms = [controller.gains(one) for one in simple(4, 4)]
        verify = Latency(table)
        best = brute_force(forms, draft, verify) / (4 / float(verify.seconds(4)))
        assert controller.choose(simple(4, 4), load(4)).gain == pytest.approx(best)


def test_trees_are_cut_to_their_most_probable_nodes() -> None:
    controller = Controller(costs(lambda rows: 1 + 0.1 * rows))
    controller.admit(0)
    form = static((3, 2, 1), 15)
    [nodes] = controller.choose([Candidate(0, "drafter", form)], load(1)).nodes
    gains = controller.gains(Candidate(0, "drafter", form))
    assert 3 <= len(nodes) < 15 and nodes == sorted(nodes)
    assert all(form[node] in (-1, *nodes) for node in nodes)
    assert min(gains[node] for node in nodes) >= max(gain for node, gain in enumerate(gains) if node not in nodes)


# --- invariants of section 9


def test_dear_drafts_are_not_made_and_free_ones_always() -> None:
    controller = Controller(costs(lambda rows: 1.0, 1e9))
    controller.admit(0)
    assert lengths(controller, 1) == [0]
    controller = Controller(costs(lambda rows: 1.0, 0.2))
    controller.admit(0)
    teach(controller, 0, 1, 0)
    assert lengths(controller, 1, 16) == [16]


def test_a_request_that_says_how_much_gets_it_as_far_as_there_is_room() -> None:
    controller = Controller(costs(lambda rows: rows, 9.0))
    for request in range(2):
        controller.admit(request)
    teach(controller, 1, 0, 3)
    fixed = [Candidate(0, "drafter", chain(5), fixed=True), Candidate(1, "drafter", chain(5))]
    assert controller.choose(fixed, load(2)).nodes == [[0, 1, 2, 3, 4], []]
    assert controller.choose(fixed, load(2, max_rows=5)).nodes == [[0, 1, 2], []]
    assert controller.choose(fixed, load(2, max_rows=2)).nodes == [[], []]
    assert controller.choose(fixed, load(2)).gain < 0.2  # of the step without any drafts
    assert controller.choose([], load(2)).nodes == []


def two_sources(verify: Cost, draft: float) -> CostModel:
    """Drafts of "drafter" cost something, those that are looked up do not."""
    table = Latency({rows: verify(rows) for rows in ROWS})
    return CostModel({1000: table}, {"drafter": DraftCost(Latency({1: draft, 512: draft}), True)})


@pytest.mark.parametrize("batch", [1, 4])
def test_of_two_sources_the_one_that_pays_more_is_taken(batch: int) -> None:
    controller = Controller(two_sources(lambda rows: 1 + 0.02 * rows, 0.2))
    for request in range(batch):
        controller.admit(request)
    drawn = [Candidate(request, "drafter", chain(8)) for request in range(batch)]
    found = [Candidate(request, "text", chain(3), matched=2) for request in range(batch)]

    def teach_both(drawn_paths: int, found_paths: int) -> None:
        for _ in range(40):
            for own, accepted in [(one, drawn_paths) for one in drawn] + [(one, found_paths) for one in found]:
                size = len(own.form)
                controller.observe(own, Verified(chain(size), range(min(size, accepted))))

    teach_both(8, 0)
    nodes = controller.choose([*drawn, *found], load(batch)).nodes
    assert nodes[batch:] == [None] * batch and all(nodes[:batch])
    teach_both(1, 3)
    nodes = controller.choose([*found, *drawn], load(batch)).nodes
    assert nodes[batch:] == [None] * batch and nodes[:batch] == [[0, 1, 2]] * batch
    alone = controller.choose(drawn, load(batch)).nodes
    assert (
        alone
        == controller.choose([*drawn, *(Candidate(r, "text", ()) for r in range(batch))], load(batch)).nodes[:batch]
    )


def test_time_that_nobody_gets_back_is_part_of_the_choice() -> None:
    """Drafts have to be worth the thought, and a text that has to be read first."""
    table = Latency({rows: 1 + 0.02 * rows for rows in ROWS})
    reading = DraftCost(Latency({1: 0.02, 512: 0.02}), True, token_s=0.1)
    model = CostModel({1000: table}, {"drafter": reading})
    controller = Controller(model)
    controller.admit(0)
    teach(controller, 0, 1, 1)
    one = Candidate(0, "drafter", chain(4))
    assert controller.choose([one], load(1)).gain > 1.1
    assert controller.choose([one], replace(load(1), thinking_s=1.0)).gain == 1.0
    assert controller.choose([replace(one, unseen=100)], load(1)).gain == 1.0
    assert controller.choose([replace(one, unseen=2)], load(1)).gain > 1.05


def test_other_sorts_of_requests_say_nothing() -> None:
    controller = Controller(costs(lambda rows: 1 + 0.02 * rows, 0.2))
    for request in range(30):
        controller.admit(request)
        for _ in range(4):
            controller.observe(Candidate(request, "drafter", chain(1), alike="match"), Verified(chain(1), []))
    for request, alike in ((100, "match"), (101, "block")):
        controller.admit(request)
        gain = controller.gains(Candidate(request, "drafter", chain(1), alike=alike))[0]
        assert gain < 0.2 if alike == "match" else gain > 0.5


def test_room_is_kept() -> None:
    controller = Controller(costs(lambda rows: 1.0))
    for request in range(3):
        controller.admit(request)
        teach(controller, request, 1 + 8 * (request == 1), 1)
    nodes = controller.choose(simple(3), load(3, max_rows=9)).nodes
    assert sum(map(len, nodes)) == 6 and len(nodes[1]) > 1 + len(nodes[0]) and abs(len(nodes[0]) - len(nodes[2])) <= 1


def test_a_source_that_drafts_whole_trees_costs_the_same_at_any_depth() -> None:
    per_depth, per_tree = (Controller(costs(lambda rows: 1.0, 0.4, per_depth)) for per_depth in (True, False))
    for controller in (per_depth, per_tree):
        controller.admit(0)
    assert lengths(per_tree, 1) == [8] and 0 < lengths(per_depth, 1)[0] < 8


# --- in traffic


@dataclass
class Traffic:
    """Requests whose first drafts are accepted with a probability of their own; time is what the costs say."""

    controller: Controller
    verify: Cost
    draft: float
    alpha: list[float]
    depth: int = 8

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(7)
        self.tokens = [0] * len(self.alpha)
        self.seconds = 0.0
        for request in range(len(self.alpha)):
            self.controller.admit(request)

    @property
    def batch(self) -> int:
        return len(self.alpha)

    def step(self) -> list[int]:
        """Chosen lengths."""
        candidates = simple(self.batch, self.depth)
        candidates = [replace(one, position=self.tokens[one.request]) for one in candidates]
        sizes = [len(nodes) for nodes in self.controller.choose(candidates, load(self.batch)).nodes]
        for candidate, size, alpha in zip(candidates, sizes, self.alpha, strict=True):
            accepted = 0
            while accepted < size and self.rng.random() < alpha:
                accepted += 1
            self.controller.observe(candidate, Verified(chain(size), range(accepted)))
            self.tokens[candidate.request] += accepted + 1
        self.seconds += self.verify(self.batch + sum(sizes)) + self.draft * max(sizes)
        return sizes

    def run(self, steps: int) -> float:
        """Tokens per second relative to plain decoding."""
        tokens, seconds = sum(self.tokens), self.seconds
        for _ in range(steps):
            self.step()
        plain = self.batch / self.verify(self.batch)
        return float((sum(self.tokens) - tokens) / (self.seconds - seconds) / plain)


def traffic(verify: Cost, draft: float, alpha: list[float]) -> Traffic:
    return Traffic(Controller(costs(verify, draft)), verify, draft, alpha)


def test_it_stops_when_a_full_batch_pays_for_every_row() -> None:
    world = traffic(lambda rows: rows, 0.0, [0.2] * 32)
    steps = [sum(world.step()) for _ in range(64)]
    assert steps[-1] == 0


def test_it_stops_when_drafts_turn_out_to_be_bad() -> None:
    world = traffic(lambda rows: 1 + 0.1 * rows, 0.05, [0.02] * 8)
    assert sum(world.step()) > 0  # hopes are high
    world.run(64)
    assert np.mean([world.step() for _ in range(64)]) < 0.1  # probes


@pytest.mark.parametrize(("batch", "slope", "draft"), [(1, 0.3, 0.1), (8, 1.0, 0.0), (8, 0.5, 3.0)])
def test_speculation_that_never_pays_costs_three_per_cent_at_most(batch: int, slope: float, draft: float) -> None:
    world = traffic(lambda rows: 1 + slope * rows, draft, [0.0] * batch)
    world.run(200)
    assert world.run(800) >= 0.97


@pytest.mark.parametrize("alpha", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("slope", "draft"), [(0.05, 0.1), (0.3, 0.2), (0.02, 0.5)])
def test_it_comes_near_the_best_fixed_length(alpha: float, slope: float, draft: float) -> None:
    world = traffic(lambda rows: 1 + slope * rows, draft, [alpha])
    world.run(50)
    gained = world.run(600)
    sizes = np.arange(9)
    tokens = (1 - alpha ** (sizes + 1)) / (1 - alpha)
    best = (tokens / (1 + slope * (sizes + 1) + sizes * draft)).max() * (1 + slope)
    assert gained >= 0.93 * best
    assert gained >= 0.97


def test_it_finds_out_when_speculation_pays_again() -> None:
    world = traffic(lambda rows: 1 + 0.1 * rows, 0.1, [0.05])
    world.run(500)
    assert sum(world.step() == [0] for _ in range(30)) >= 28
    world.alpha = [0.95]
    assert world.run(150) > 1.2
    assert world.run(100) > 2.5


def test_probes_need_room() -> None:
    controller = Controller(costs(lambda rows: 1 + 0.1 * rows))
    controller.admit(0)
    teach(controller, 0, 0, 3)
    [one] = simple(1)
    for room, probes in ((1, 0), (2, 4)):
        chosen = []
        for position in range(100):
            at = replace(one, position=position)
            chosen += controller.choose([at], load(1, room)).nodes
            controller.observe(at, Verified((), []))
        assert sum(map(len, chosen)) == probes


def test_good_requests_speculate_beside_bad_ones() -> None:
    world = traffic(lambda rows: 1 + 0.05 * rows, 0.02, [0.9] * 2 + [0.02] * 6)
    world.run(150)
    sizes = np.mean([world.step() for _ in range(60)], 0)
    assert sizes[:2].min() > 2 and sizes[2:].max() < 0.2


def test_it_switches_on_only_for_a_clear_gain() -> None:
    """A gain of 1.04: a request that speculates goes on, one that has stopped does not begin."""
    slope = next(s for s in np.arange(0, 3, 0.001) if (1 + RATES.mean()) / (1 + 2 * s) * (1 + s) < 1.04)
    controller = Controller(costs(lambda rows: 1 + slope * rows))
    controller.admit(0)
    one = [Candidate(0, "drafter", chain(1))]
    assert controller.choose(one, load(1)).nodes == [[0]]
    controller._requests[0].on["drafter", 0] = False
    choice = controller.choose(one, load(1))
    assert choice.nodes == [[]] and choice.gain == 1.0
    controller._costs = costs(lambda rows: 1 + 0.5 * slope * rows)  # now it is more
    assert controller.choose(one, load(1)).gain > 1.05


def test_chains_end_where_the_drafter_is_unsure() -> None:
    assert confident(np.array([1.0, 0.5, 0.2]), np.array([0.2, 0.2, 0.8])).tolist() == [True, False, True]


def test_requests_end() -> None:
    controller = Controller(costs(lambda rows: 1.0))
    controller.admit(3)
    controller.free(3)
    with pytest.raises(KeyError):
        controller.choose([Candidate(3, "drafter", chain(1))], load(1))
