"""State of one choice, or of one branch of a program, while it lives in the engine. Owned by the engine thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.mailbox import Mailbox
from engine.pages import Branch
from engine.request import DecodeRequest, Finish, TokenScore, Watch
from samplers.programs.branch import Mixture
from samplers.rng import Stream

if TYPE_CHECKING:
    from engine.family import Family


@dataclass(eq=False, slots=True)
class Sequence:
    """One choice or branch. `tokens` are known ids, of which the first `computed` have their KV cached."""

    active: ActiveRequest
    choice: int  # 0-based within the request; of a branch: in order of creation
    tokens: list[int]
    stream: Stream  # its random numbers
    computed: int = 0
    branch: Branch | None = None  # page table; None while nothing is cached
    slot: int | None = None  # parameter slot, kept through preemption until the end
    admitted: bool = False  # its parameters have been written into the slot
    finish: Finish | None = None
    watch: Watch | None = None  # may end it
    # of a branch
    heard: int = 0  # output tokens that the sampler state in its slot knows of; -1: others than there are now
    mixtures: dict[int, Mixture] = field(default_factory=dict)  # in place of the tokens at these indices

    @property
    def prompt_length(self) -> int:
        return len(self.active.request.prompt_ids)

    @property
    def position(self) -> int:
        """Output position t of the next token to draw, behind what had begun; survives preemption."""
        return len(self.tokens) - self.prompt_length

    @property
    def needed(self) -> int:
        """Tokens whose KV has to be computed before the next token can be drawn."""
        return len(self.tokens) - self.computed

    @property
    def shareable(self) -> int:
        """Tokens before anything that is not one: what the prefix cache may know of."""
        return min(self.mixtures, default=len(self.tokens))

    @property
    def attachable(self) -> int:
        """Those that may be taken from it: a token is scored by the row before it, which has to be computed then."""
        active = self.active
        return min(self.shareable, active.request.scored_from) if active.unscored else self.shareable

    @property
    def key(self) -> tuple[int, int, int]:
        """Order of service: priority, then arrival, then choice."""
        return self.active.request.priority, self.active.arrival, self.choice


@dataclass(eq=False, slots=True)
class ActiveRequest:
    """A request inside the engine."""

    request: DecodeRequest
    mailbox: Mailbox
    arrival: int
    sequences: list[Sequence] = field(default_factory=list)  # of a program: the branches it has not released
    family: Family | None = None  # runs the request's program
    followers: list[Sequence] = field(default_factory=list)  # choices that wait to fork off the computed prompt
    prompt_scores: list[TokenScore | None] | None = None  # filled chunk by chunk
    cached_tokens: int = 0
    answered: bool = False  # some row of it has been computed: what later ones find cached may be its own
    delivered_at: float = 0.0  # time.monotonic of the last delivery; 0: nothing has been delivered

    @property
    def unscored(self) -> bool:
        """Log-probabilities of prompt tokens are missing."""
        return self.prompt_scores is not None and None in self.prompt_scores[self.request.scored_from :]

    @property
    def unfinished(self) -> int:
        return sum(sequence.finish is None for sequence in self.sequences)


def activate(request: DecodeRequest, mailbox: Mailbox, arrival: int) -> ActiveRequest:
    """A request's sequences: the first leads, the others follow it until the prompt has been computed once. Those of a
    program come when it asks for them."""
    active = ActiveRequest(request, mailbox, arrival)
    if request.chain.program is None:
        active.sequences = [
            Sequence(
                active,
                i,
                [*request.prompt_ids, *request.begun],
                Stream(request.seed, request.first_choice + i),
                watch=None if request.watch is None else request.watch(),
            )
            for i in range(request.n)
        ]
        active.followers = active.sequences[1:]
    if request.prompt_logprobs is not None:
        active.prompt_scores = [None] * len(request.prompt_ids)
    return active
