"""Which fields a server takes. Learned from its refusals: what one server wants, another has never heard of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.vote_cli.remote import Refused

MOST_CHOICES = 128  # of a request, at OpenAI and here
_CHOICES = ("n", "n_cmpl", "best_of", "choice", "choices")  # as refusals speak of them


@dataclass(frozen=True)
class Wish:
    """Fields that are asked for while the server takes them: the best form first, perhaps nothing at last."""

    forms: tuple[Mapping[str, Any], ...]
    instead: str = ""  # the field that a refusal has to propose; without it one that names a field of ours is enough

    def refused(self, refusal: Refused) -> bool:
        if len(self.forms) == 1:
            return False
        if self.instead:
            return self.instead in str(refusal)
        return _names(refusal, self.forms[0])


class Dialect:
    """How to ask one server for samples: the fields of a request, fewer or others after each refusal."""

    def __init__(self, endpoint: str, fixed: Mapping[str, Any], max_tokens: int | None, top_logprobs: int) -> None:
        """fixed: fields that must not be given up, since they change what is generated."""
        self.path = "/chat/completions" if endpoint == "chat" else "/completions"
        self.choices = MOST_CHOICES  # per request, at most
        self.notes: dict[str, None] = {}  # what the server does not give, in the order it was found out
        self.revision = 0  # how often something has been given up
        self._fixed = fixed
        self._wishes = list(_wishes(endpoint, max_tokens, top_logprobs))

    def body(self, asked: Mapping[str, Any], n: int, seed: int) -> dict[str, Any]:
        """A request for n choices, at most `choices`."""
        wanted = {name: value for wish in self._wishes for name, value in wish.forms[0].items()}
        if "seed" in wanted:
            wanted["seed"] = seed
        return {**self._fixed, **asked, **wanted, "n": n}

    def concede(self, refusal: Refused, n: int) -> bool:
        """Whether another body is worth a try: the refusal of n choices named something that can be given up."""
        for place, wish in enumerate(self._wishes):
            if wish.refused(refusal):
                self._wishes[place] = replace(wish, forms=wish.forms[1:])
                self.revision += 1
                if not wish.instead:
                    self._note(wish.forms[0], refusal)
                return True
        if n > 1 and _names(refusal, _CHOICES):
            self.choices = min(self.choices, n // 2)
            self.revision += 1
            return True
        return False

    def _note(self, form: Mapping[str, Any], refusal: Refused) -> None:
        fields = ", ".join(f"{name} = {json.dumps(value)}" for name, value in form.items())
        self.notes[f"it does not take {fields} ({refusal})"] = None


def _wishes(endpoint: str, max_tokens: int | None, top_logprobs: int) -> Iterator[Wish]:
    top: Sequence[Mapping[str, Any]] = ()
    if endpoint == "chat":
        top = [{"logprobs": True, "top_logprobs": top_logprobs}] if top_logprobs else []
        yield Wish((*top, {"logprobs": True}, {}))
    else:
        top = [{"logprobs": top_logprobs}] if top_logprobs > 1 else []
        yield Wish((*top, {"logprobs": 1}, {}))
        yield Wish(({"return_tokens_as_token_ids": True}, {}))  # else alternatives of equal text become one
    yield Wish(({"return_token_ids": True}, {}))
    yield Wish(({"seed": True}, {}))
    if max_tokens is not None:  # some servers ignore the newer name, others refuse the older one
        newer = "max_completion_tokens"
        yield Wish(({"max_tokens": max_tokens}, {newer: max_tokens}), instead=newer)


def _names(refusal: Refused, fields: Iterable[str]) -> bool:
    """Whether the field at fault is one of these; where the server does not say, whether its message has one."""
    if refusal.param:
        return refusal.param.rpartition(".")[2] in fields
    return any(re.search(rf"(?<![\w\\]){field}(?!\w)", str(refusal)) for field in fields)
