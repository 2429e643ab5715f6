"""Samples as JSON: what `Outcome.records` writes, what files hold and what a request gives as `samples_data`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from samplers.contract import SamplerError
from voting.contract import Sample

# of an earlier vote over the same samples; another vote finds its own
_FOUND_BY_VOTES = ("sum_logprob", "cluster", "q", "weight", "pruned", "prune_reason")
# about how it was drawn: of the request; "listed": mean_logprob is over the tokens a server lists, perhaps not all
_OF_DRAWING = ("seed", "counted")
_LARGEST = 2**63


def read_sample(record: Any, index: int, path: str) -> Sample:
    """The sample of a record, as number `index` unless it says another. null is as good as nothing. Raises SamplerError
    with the dotted path of the field that is wrong or unknown."""
    if not isinstance(record, Mapping):
        raise SamplerError(f"'{path}' must be an object", path)
    for name in record:
        if name not in _READERS and name not in (*_FOUND_BY_VOTES, *_OF_DRAWING):
            known = ", ".join(_READERS)
            raise SamplerError(f"'{path}.{name}' is not a field of a sample; known: {known}", f"{path}.{name}")
    fields = {
        attribute: read(record[name], f"{path}.{name}")
        for name, (attribute, read) in _READERS.items()
        if record.get(name) is not None
    }
    if "text" not in fields:
        raise SamplerError(f"'{path}.text' is required", f"{path}.text")
    if "token_ids" in fields:
        length = len(fields["token_ids"])
        if fields.setdefault("n_tokens", length) != length:
            raise SamplerError(f"'{path}.n_tokens' is not the number of token_ids, {length}", f"{path}.n_tokens")
    return Sample(**{"index": index, **fields})


def write_sample(sample: Sample) -> dict[str, Any]:
    """Finite JSON that `read_sample` reads; what is not known is null or left out."""
    known = sample.mean_logprob is not None
    always = {
        "index": sample.index,
        "text": sample.text,
        "n_tokens": sample.n_tokens,
        "mean_logprob": sample.mean_logprob,
        "sum_logprob": sample.sum_logprob if known and sample.n_tokens else None,
        "finish_reason": sample.finish_reason,
        "answer": sample.answer,
        "sample_weight": sample.weight,
    }
    where_known = {
        "token_ids": None if sample.token_ids is None else list(sample.token_ids),
        "abstain_reason": sample.abstain_reason,
        "topk_entropy": _finite(sample.entropies),
        "confs": _finite(sample.confidences),
        "scores": {name: finite(score) for name, score in sample.scores.items()} or None,
    }
    return always | {name: value for name, value in where_known.items() if value is not None}


def finite(value: float) -> float | None:
    """JSON knows no other numbers."""
    return value if math.isfinite(value) else None


def _finite(values: Sequence[float] | None) -> list[float | None] | None:
    return None if values is None else [finite(value) for value in values]


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise SamplerError(f"'{path}' must be a string", path)
    return value


def _integer(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LARGEST:
        raise SamplerError(f"'{path}' must be an integer that is not negative and has 63 bits", path)
    return value


def _number(value: Any, path: str) -> float:
    """NaN and infinite ones, too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SamplerError(f"'{path}' must be a number", path)
    try:
        return float(value)
    except OverflowError:
        raise SamplerError(f"'{path}' is too large", path) from None


def read_logprob(value: Any, path: str) -> float:
    """NaN and -Infinity are read: samples that have them abstain. Raises SamplerError."""
    if _number(value, path) > 0:
        raise SamplerError(f"'{path}' is the logarithm of a probability and must not be positive", path)
    return float(value)


def _weight(value: Any, path: str) -> float:
    if not 0 <= _number(value, path) < math.inf:
        raise SamplerError(f"'{path}' must be finite and not negative", path)
    return float(value)


def _ids(value: Any, path: str) -> tuple[int, ...]:
    return tuple(_integer(one, f"{path}[{place}]") for place, one in enumerate(_list(value, path)))


def _numbers(value: Any, path: str) -> tuple[float, ...]:
    """null stands for what is no finite number, which JSON does not know."""
    return tuple(
        math.nan if one is None else _number(one, f"{path}[{place}]") for place, one in enumerate(_list(value, path))
    )


def _scores(value: Any, path: str) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise SamplerError(f"'{path}' must be an object", path)
    return {name: math.nan if one is None else _number(one, f"{path}.{name}") for name, one in value.items()}


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise SamplerError(f"'{path}' must be a list", path)
    return value


_READERS: Mapping[str, tuple[str, Callable[[Any, str], Any]]] = MappingProxyType(
    {
        "index": ("index", _integer),
        "text": ("text", _text),
        "token_ids": ("token_ids", _ids),
        "n_tokens": ("n_tokens", _integer),
        "mean_logprob": ("mean_logprob", read_logprob),
        "finish_reason": ("finish_reason", _text),
        "answer": ("answer", _text),
        "abstain_reason": ("abstain_reason", _text),
        "sample_weight": ("weight", _weight),
        "topk_entropy": ("entropies", _numbers),
        "confs": ("confidences", _numbers),
        "scores": ("scores", _scores),
    }
)  # field of a record -> attribute of a sample, and how it is read
