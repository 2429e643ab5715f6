"""Which data-parallel rank computes a request: one that has its prefix cached, unless it is far busier than the others.

Every rank caches prefixes of its own. So all choices of a prompt go to one rank, and so do later requests of the same
session, or with the same first pages. Knows nothing of vLLM. Lives in the event loop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import count

from engine.prefix_cache import chain_hash, token_pages
from engine.request import DecodeRequest

_BUSY = 2.0  # times the mean of the other ranks: a pin to a rank with more choices does not hold
_IDLE = 8  # choices up to which a rank is never busy: a step with them takes hardly longer than one with a single row


class Ranks:
    """The choices that every rank has, and where keys of requests were last sent."""

    def __init__(self, number: int, page_size: int, remembered: int) -> None:
        """page_size: tokens that are cached together; remembered: keys, about one per page of all ranks."""
        self._page_size, self._remembered = page_size, remembered
        self._choices = [0] * number  # by rank
        self._chosen_at = [0] * number  # by rank: when it was last chosen, as the clock says
        self._clock = count(1)
        self._rank_of: OrderedDict[int | str, int] = OrderedDict()  # by key; the one used longest ago comes first

    def enter(self, request: DecodeRequest) -> int:
        """The rank of a request that begins. Its choices count until they leave."""
        keys = list(self._keys(request))
        pin = next((self._rank_of[key] for key in keys if key in self._rank_of), None)
        rank = self._emptiest() if pin is None or self._is_busy(pin) else pin
        for key in reversed(keys):  # the most telling one is forgotten last
            self._rank_of[key] = rank
            self._rank_of.move_to_end(key)
        while len(self._rank_of) > self._remembered:
            self._rank_of.popitem(last=False)
        self._choices[rank] += request.n
        self._chosen_at[rank] = next(self._clock)
        return rank

    def leave(self, request: DecodeRequest, rank: int) -> None:
        """A request has ended."""
        self._choices[rank] -= request.n

    def _keys(self, request: DecodeRequest) -> Iterator[int | str]:
        """What ties a request to others, the most telling key first: its session, then its prompt's pages, longest
        prefix first. Nothing where there is no choice."""
        if len(self._choices) == 1:
            return
        if request.session:
            yield f"{request.cache_salt}/{request.session}"
        hashes = [chain_hash(0, request.cache_salt.encode())]
        for page in token_pages(request.prompt_ids, self._page_size, 0, len(request.prompt_ids) // self._page_size):
            hashes.append(chain_hash(hashes[-1], page))
        yield from reversed(hashes[1:])

    def _is_busy(self, rank: int) -> bool:
        others = (sum(self._choices) - self._choices[rank]) / (len(self._choices) - 1)
        return self._choices[rank] > max(_IDLE, _BUSY * others)

    def _emptiest(self) -> int:
        """Of equals the one that was chosen longest ago."""
        return min(range(len(self._choices)), key=lambda rank: (self._choices[rank], self._chosen_at[rank]))
