"""A suffix automaton that counts: every stretch of one text, how often it occurs, and what follows it.

Grows by one token at a time. The states are classes of stretches that end at the same places (Blumer et al., The
smallest automaton recognizing the subwords of a text, TCS 1985): at most two per token, amortised constant time.
Occurrences are counted for stretches of at most `depth` tokens, as each state that holds an ending of the text is
visited once per token; what follows longer ones is looked up behind their last `depth - 1` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

from spec_decode.drafters.growth import Continuation, Match

Place = tuple[int, int]  # a state, and the length of a stretch in it, below `depth`


class SuffixAutomaton:
    """Of one text. A state's stretches are endings of its longest one, all that are longer than its link's longest."""

    def __init__(self, depth: int) -> None:
        """depth: at least 2."""
        self._depth = depth
        self._next: list[dict[int, int]] = [{}]  # of each state: token -> state of the longer stretches
        self._link = [-1]  # state of the longest ending that occurs at more places
        self._length = [0]  # of the longest stretch
        self._count = [0]  # occurrences; of states all of whose stretches are longer than `depth`: meaningless
        self._last = 0  # state of the whole text
        self._ending: Place = 0, 0  # state and length of the text's last `depth` tokens, or of all of them

    def append(self, token: int) -> None:
        new = self._new_state({}, -1, self._length[self._last] + 1, 0)
        state = self._last
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = new
            state = self._link[state]
        self._link[new] = 0 if state < 0 else self._exactly(state, token)
        self._last = new
        self._count_endings(token)

    def copy(self) -> SuffixAutomaton:
        twin = SuffixAutomaton(self._depth)
        twin._next = [following.copy() for following in self._next]
        twin._link, twin._length, twin._count = self._link.copy(), self._length.copy(), self._count.copy()
        twin._last, twin._ending = self._last, self._ending
        return twin

    def matches(self) -> Iterator[Match[Place]]:
        """Endings of the text that have occurred before, longest first. Of those with equal occurrences only the
        longest, for whatever follows one of them follows all."""
        longest = self._length[self._link[self._last]] if self._last else 0
        if longest == 0:
            return
        length = min(longest, self._depth - 1)
        state = self._holding(self._ending[0], length)
        yield Match(longest, (state, length))
        while state := self._link[state]:
            yield Match(self._length[state], (state, self._length[state]))

    def continuations(self, place: Place) -> list[Continuation[Place]]:
        state, length = place
        length = min(length + 1, self._depth - 1)
        return [
            Continuation(token, self._count[state], (self._holding(state, length), length))
            for token, state in self._next[state].items()
        ]

    def _exactly(self, state: int, token: int) -> int:
        """The state whose longest stretch is that of `state` and the token; splits one, if it must."""
        found = self._next[state][token]
        length = self._length[state] + 1
        if self._length[found] == length:
            return found
        split = self._new_state(self._next[found].copy(), self._link[found], length, self._count[found])
        self._link[found] = split
        while state >= 0 and self._next[state].get(token) == found:
            self._next[state][token] = split
            state = self._link[state]
        return split

    def _new_state(self, following: dict[int, int], link: int, length: int, count: int) -> int:
        self._next.append(following)
        self._link.append(link)
        self._length.append(length)
        self._count.append(count)
        return len(self._next) - 1

    def _count_endings(self, token: int) -> None:
        """Every ending of at most `depth` tokens has occurred once more."""
        state, length = self._ending
        length = min(length + 1, self._depth)
        state = self._holding(self._next[state][token], length)
        self._ending = state, length
        while state:
            self._count[state] += 1
            state = self._link[state]

    def _holding(self, state: int, length: int) -> int:
        """The state of the last `length` tokens of a stretch in `state`."""
        while length <= self._length[self._link[state]] and state:
            state = self._link[state]
        return state
