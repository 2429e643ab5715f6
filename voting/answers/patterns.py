"""The last match of a regular expression that a request brings along.

RE2 is linear in the text for every expression, but looking for one match after the other is not: each search may read
to the end. So one match covers the text as a sequence of matches and single characters, and remembers the last of them.
"""

from __future__ import annotations

import re2

from samplers.contract import SamplerError

LONGEST = 1000  # characters of an expression
_MOST_INSTRUCTIONS = 1000  # of the compiled expression, each of which a byte of text can cost a step of
_MEMORY_BYTES = 1 << 20
_COVERED = r"(?:({})|(?s:.))*"


class LastMatch:
    """A regular expression of RE2, whose group `group` in its last match is an answer."""

    def __init__(self, regex: str, group: int | None, path: str) -> None:
        """group: None is the first, or the whole match where the expression has none.

        Raises SamplerError, naming fields below `path`, for what is no such expression, is too large or lacks the
        group.
        """
        where = f"{path}.regex"
        groups = compiled(regex, where).groups
        try:
            self._covering = _parsed(_COVERED.format(regex), where)
        except SamplerError:  # `regex` ends within \Q
            self._covering = _parsed(_COVERED.format(regex + r"\E"), where)
        _check_size(self._covering, where)
        self._group = min(groups, 1) if group is None else group
        if self._group > groups:
            raise SamplerError(f"'{path}.group' must be at most {groups}, the groups of the regex", f"{path}.group")

    def __call__(self, text: str) -> str | None:
        """text: no unpaired surrogates. Matches of nothing at all are passed over."""
        data = text.encode()
        found = self._covering.fullmatch(data)
        (whole, _), (start, end) = found.span(1), found.span(1 + self._group)
        if whole < 0 or start < whole:  # no match, or the group is of an earlier one
            return None
        return data[start:end].decode(errors="replace")  # \C can tear characters


def compiled(regex: str, where: str) -> re2._Regexp:
    """An expression of RE2, which takes a time linear in the text for each search. Raises SamplerError, naming the
    field `where`, for what is none or too large."""
    if len(regex) > LONGEST:
        raise SamplerError(f"'{where}' is longer than {LONGEST} characters", where)
    expression = _parsed(regex, where)
    _check_size(expression, where)
    return expression


def _parsed(regex: str, where: str) -> re2._Regexp:
    options = re2.Options()
    options.log_errors, options.max_mem = False, _MEMORY_BYTES
    try:
        return re2.compile(regex, options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error, re2.error) else "unpaired surrogate"
        raise SamplerError(f"'{where}' is no regular expression of RE2: {reason}", where) from error


def _check_size(expression: re2._Regexp, where: str) -> None:
    if expression.programsize > _MOST_INSTRUCTIONS:
        raise SamplerError(f"'{where}' is too large", where)
