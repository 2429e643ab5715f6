"""Field types of request bodies: strict, except that an integer may be written as 3.0.

Strings are never read as numbers, true is not 1, NaN and infinities do not pass.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr
from pydantic_core import PydanticCustomError

INT64_MAX = 2**63 - 1
MAX_STOPS = 1024
MAX_STOP_LENGTH = 1024


class Body(BaseModel):
    """A request body or a part of one. Unknown names are ignored here and logged by `parse`."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("integer", "must be an integer")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PydanticCustomError("number", "must be a number")
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if not math.isfinite(real):
        raise PydanticCustomError("finite", "must be finite")
    return real


def _stops(value: Any) -> Any:
    """`stop` in either form, as a list."""
    if value is None:
        return None
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise PydanticCustomError("stop", "must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise PydanticCustomError("stop", f"may hold at most {MAX_STOPS} strings")
    if not all(1 <= len(one) <= MAX_STOP_LENGTH for one in stops):
        raise PydanticCustomError("stop", f"strings must have 1 to {MAX_STOP_LENGTH} characters")
    return stops


def _printable(value: str) -> str:
    if not (1 <= len(value) <= 128 and all(" " <= char <= "~" for char in value)):
        raise PydanticCustomError("request_id", "must be 1 to 128 printable ASCII characters")
    return value


def _not_zero(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("cut", "must be at least 1, or -1")
    return value


# behind the range, so that the document shows it: Annotated[int, Field(ge=1), WHOLE]
WHOLE = BeforeValidator(_whole)
REAL = BeforeValidator(_number)
Int = Annotated[int, WHOLE]
Number = Annotated[float, REAL]
Flag = StrictBool
Text = StrictStr
Int64 = Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX), WHOLE]
TokenId = Annotated[int, Field(ge=0), WHOLE]
TokenKey = Annotated[str, Field(max_length=20)]  # a token id as a JSON key
Count = Annotated[int, Field(ge=1), WHOLE]
Cut = Annotated[int, Field(ge=-1), WHOLE, AfterValidator(_not_zero)]  # tokens to keep; -1: as many as fit
Priority = Annotated[int, Field(ge=-(2**31), le=2**31 - 1), WHOLE]
Salt = Annotated[Text, Field(min_length=1)]
RequestId = Annotated[Text, AfterValidator(_printable)]
_StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Stops = Annotated[
    _StopString | Annotated[list[_StopString], Field(max_length=MAX_STOPS)] | None, BeforeValidator(_stops)
]
