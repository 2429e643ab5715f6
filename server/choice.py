"""One choice on its way from token deltas to text events: detokenized, cut at stop strings, tokens kept aligned.

Knows nothing about HTTP or about other choices. Lives in the event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.request import DecodeRequest, Delta, Finish, FinishReason, TokenScore
from samplers.failures import CONSTRAINT_UNSATISFIABLE
from samplers.trace import TokenTrace
from server.text.codec import TextCodec
from server.text.covers import Cover
from server.text.stop import StopMatcher

LONGEST_CHARACTER = 4  # bytes, hence tokens
ABORTED, INTERNAL = "overloaded", "internal_error"  # failure codes of a choice


@dataclass(frozen=True)
class TextOptions:
    """How tokens become text."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special: bool = True
    echoed: bool = False  # the prompt is shown in front: its last character may be completed by generated tokens
    interval: int | None = None  # tokens per event; None: whatever the engine delivered together
    listed: bool = True  # events have entries, where log-probabilities were asked for
    keep_scores: bool = False  # events have the scores of all their tokens, shown or not


@dataclass(frozen=True)
class Entry:
    """A token as log-probabilities list it."""

    token: int
    score: TokenScore
    at: int  # index of the character its first byte belongs to
    visible: bool  # it contributes to the text


@dataclass(frozen=True)
class End:
    """How a choice ended."""

    reason: str  # 'stop' or 'length'
    stop_reason: str | int | None
    cumulative_logprob: float | None  # None: the runner has not been asked for it
    failure: dict[str, str] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)  # what a program or samplers say about the choice


@dataclass
class ChoiceEvent:
    """What became final of one choice: concatenated over the events, its whole result."""

    choice: int  # index in the response
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)  # one per token where they are kept
    traces: list[TokenTrace | None] = field(default_factory=list)  # one per token where they were asked for
    end: End | None = None
    prompt_ids: Sequence[int] | None = None  # where they are not those that were sent; in the first event

    def absorb(self, later: ChoiceEvent) -> None:
        """Append a later event of the same choice."""
        self.text += later.text
        self.token_ids += later.token_ids
        self.entries += later.entries
        self.scores += later.scores
        self.traces += later.traces
        self.end = later.end
        self.prompt_ids = self.prompt_ids or later.prompt_ids


class ChoiceStream:
    """Turns the deltas of one choice into events."""

    def __init__(
        self,
        index: int,
        codec: TextCodec,
        request: DecodeRequest,
        options: TextOptions,
        sent: Sequence[int] | None = None,
        beyond: Cover | None = None,
    ) -> None:
        """`sent`: the prompt as the client knows it. `beyond`: the first token is the last of this cover, and what it
        covers is no output."""
        self.done = False
        self._index = index
        self._codec = codec
        self._request = request
        self._options = options
        self._detokenizer = codec.detokenizer()
        if options.echoed:
            for token in (request.prompt_ids if sent is None else sent)[-LONGEST_CHARACTER:]:
                self._detokenizer.feed(token)
        if beyond is not None:
            self._detokenizer.hide(len(codec.token_bytes(beyond.last)) - len(beyond.beyond))
        self._matcher = StopMatcher(options.stops, options.include_stop)
        self._waiting: deque[Entry] = deque()  # entries whose first character is not out yet
        self._seen = 0  # characters decoded
        self._count = 0  # tokens
        self._event = ChoiceEvent(index)
        if sent is not None and sent != request.prompt_ids:
            self._event.prompt_ids = request.prompt_ids
        self._released = 0  # characters given out
        # up to the token that ends the text: those behind a stop string arrive or not, as timing has it
        self._cumulative_logprob: float | None = 0.0

    def feed(self, delta: Delta) -> list[ChoiceEvent]:
        """Events of a delta; the last one has `end` when the choice is over."""
        finish = delta.finish
        events: list[ChoiceEvent] = []
        last = len(delta.token_ids) - 1
        for at, token in enumerate(delta.token_ids):
            ending = finish is not None and finish.stop_token_id is not None and at == last
            self._add_logprob(delta.logprobs[at] if delta.logprobs else None)
            if self._request.trace is not None:
                self._event.traces.append(delta.traces[at] if delta.traces else None)
            self._token(token, delta.scores[at] if delta.scores else None, ending)
            if self._matcher.matched is not None:
                events.append(self._close("stop", self._matcher.matched, finish))
                return events
            interval = self._options.interval
            if interval is not None and at != last and len(self._event.token_ids) >= interval:
                events.append(self._take())
        if finish is not None:
            events.append(self._finish(finish))
        elif self._due():
            events.append(self._take())
        return events

    def _add_logprob(self, logprob: float | None) -> None:
        known = self._cumulative_logprob
        self._cumulative_logprob = None if known is None or logprob is None else known + logprob

    def _due(self) -> bool:
        """Whether to send what there is: something to see, and as many tokens as were asked for."""
        if self._options.interval is not None:
            return len(self._event.token_ids) >= self._options.interval or self._released == len(self._event.text) > 0
        return bool(self._event.text or self._event.entries)

    def _token(self, token: int, score: TokenScore | None, ending: bool) -> None:
        options = self._options
        self._count += 1
        self._event.token_ids.append(token)
        hidden = (ending and not (options.include_stop and token in self._request.stop_token_ids)) or (
            options.skip_special and token in self._codec.special_ids
        )
        at, text = self._seen, ""
        if not hidden:
            at += self._detokenizer.lead(token)
            text = self._detokenizer.feed(token)
            self._seen += len(text)
        if score is not None and options.keep_scores:
            self._event.scores.append(score)
        if score is not None and options.listed:
            self._waiting.append(Entry(token, score, at, not hidden and bool(self._codec.token_bytes(token))))
        self._release(self._matcher.feed(text, armed=self._count > self._request.min_tokens))

    def _release(self, text: str) -> None:
        self._event.text += text
        self._released += len(text)
        while self._waiting and self._waiting[0].at < self._released:
            self._event.entries.append(self._waiting.popleft())

    def _finish(self, finish: Finish) -> ChoiceEvent:
        tail = self._detokenizer.finish()
        self._release(self._matcher.feed(tail, armed=self._count > self._request.min_tokens))
        if self._matcher.matched is not None:
            return self._close("stop", self._matcher.matched, finish)
        self._release(self._matcher.flush())
        self._event.entries += self._waiting
        if finish.reason in (FinishReason.ERROR, FinishReason.ABORT):
            return self._close("length", "error", finish, _failure(finish))
        named = finish.stop_token_id if finish.stop_token_id in self._request.stop_token_ids else None
        return self._close(finish.reason.value, named, finish)

    def _close(
        self, reason: str, stop_reason: str | int | None, finish: Finish | None, failure: dict[str, str] | None = None
    ) -> ChoiceEvent:
        self.done = True
        details = {} if finish is None else finish.details
        self._event.end = End(reason, stop_reason, self._cumulative_logprob, failure, details)
        return self._take()

    def _take(self) -> ChoiceEvent:
        event, self._event = self._event, ChoiceEvent(self._index)
        return event


def _failure(finish: Finish) -> dict[str, str]:
    """What the client is told about a choice the engine could not finish; causes of ours stay in the log."""
    if finish.reason is FinishReason.ABORT:
        return {"code": ABORTED, "message": "the request was ended by the server"}
    if finish.error_code == CONSTRAINT_UNSATISFIABLE:
        message = finish.message or "the request's own masks leave no token to choose"
        return {"code": CONSTRAINT_UNSATISFIABLE, "message": message}
    if finish.impossible:
        return {"code": finish.error_code or "", "message": finish.message}
    return {"code": INTERNAL, "message": "the model failed on this choice"}
