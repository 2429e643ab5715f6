"""Python for RPG: a statement parser that reads source as it is written.

Symbols are (parser state, stack top). The parser state says how far the current statement has come: `return`,
`return ..`, `return .. end`; it contains what came before in the statement, so that a repetition can only begin
between statements. Expressions are not taken apart and names do not matter. The stack top is the clause whose block
the statement stands in.

Statements are the twelve simple ones (expression, assignment, assert, pass, del, return, yield, raise, break,
continue, import, and the scope of names: global, nonlocal) and the nine compound ones (if, while, for, try, with,
match, def, class, async); decorators stand for themselves. An assignment begins as an expression.
"""

from __future__ import annotations

from typing import NamedTuple

from samplers.rpg.grammar import BREAK, GRAMMARS, Fed, Symbol
from samplers.rpg.python_lexemes import LexState, cut

_SIMPLE = {
    word.encode(): word for word in ("assert", "pass", "del", "return", "yield", "raise", "break", "continue", "import")
} | {b"from": "import", b"global": "scope", b"nonlocal": "scope"}
_COMPOUND = frozenset({b"if", b"while", b"for", b"try", b"with", b"def", b"class"})
_ASYNC = frozenset({b"for", b"with", b"def"})
_CLAUSES = {b"elif": ("if",), b"else": ("if", "for", "while", "try"), b"except": ("try",), b"finally": ("try",)}
_INFIX = frozenset(b"and or not in is if else for lambda await async as from import yield".split())
_BEFORE_OPERANDS = frozenset({b"not", b"lambda", b"await"})
# words that begin statements and clauses only
_OUTSIDE = (_SIMPLE.keys() | _COMPOUND | _CLAUSES.keys()) - {b"yield", b"import", b"from", b"if", b"for", b"else"}
_CLOSES = {b")": b"(", b"]": b"[", b"}": b"{"}
_COMPARISONS = frozenset({b"==", b"!=", b"<=", b">=", b":="})
_TAB = 8
# what the last lexeme of a statement was
_NOTHING, _OPERAND, _STRING, _OPERATOR, _COMMA = range(5)


class _Block(NamedTuple):
    column: int
    clause: str  # its header, as in symbols; '' around everything
    last: str = ""  # compound statement at this level that a clause could continue
    inline: bool = False  # on the line of its header


class _Parser:
    """One place in a text. `feed` works on a copy; everything in it is immutable."""

    def __init__(self) -> None:
        self.lex = LexState()
        self.blocks: tuple[_Block, ...] = (_Block(0, ""),)
        self.brackets: tuple[bytes, ...] = ()
        self.path = ""  # the parser state; '' between statements
        self.clause = ""  # of the header being read; '' in simple statements
        self.opened = ""  # clause whose colon has come and whose block has not
        self.last = _NOTHING
        self.lambdas = 0  # whose colons have not come, outside of brackets
        self.column = 0
        self.fresh = True  # nothing but space on this line so far
        self.spaced = False  # space before the next lexeme
        self.failed = False  # until the end of the line
        self.matching = False  # the statement so far is the word `match`, which may be a name
        self.typed = False  # the statement so far is the word `type`

    def copy(self) -> _Parser:
        other = _Parser.__new__(_Parser)
        other.__dict__ = self.__dict__.copy()
        return other

    # --- lexemes

    def read(self, kind: str, text: bytes, out: list[Symbol]) -> None:
        if kind == "space":
            self._space(text)
        elif kind == "newline":
            self._newline(out)
        elif kind == "join":
            self.fresh = self.fresh and not self.path
        elif not self.failed:
            if self.brackets and self.fresh and text in _OUTSIDE:
                self._fail(out)  # a bracket was never closed, but this line can be read again
                self.failed, self.path = False, ""
            if self.path:
                self._go_on(kind, text, out)
            else:
                self._begin(kind, text, out)
            self.fresh = self.spaced = False

    def _space(self, text: bytes) -> None:
        self.spaced = True
        if self.fresh:
            for byte in text:
                if byte == 0x20:
                    self.column += 1
                elif byte == 0x09:
                    self.column += _TAB - self.column % _TAB
                elif byte == 0x0C:
                    self.column = 0

    def _newline(self, out: list[Symbol]) -> None:
        self.column, self.fresh, self.spaced = 0, True, False
        if self.brackets:
            return
        if self.path and not self.failed:
            self._end(out)
        self.failed, self.path, self.clause, self.matching = False, "", "", False
        while self.blocks[-1].inline:
            self.blocks = self.blocks[:-1]

    # --- statements

    def _begin(self, kind: str, text: bytes, out: list[Symbol]) -> None:
        if self.fresh:
            self._indent(out)
        elif self.opened:
            self.blocks = (*self.blocks, _Block(self.column, self.opened, inline=True))
        self.opened = self.clause = ""
        self.last, self.lambdas, self.typed = _NOTHING, 0, False
        before = self.blocks[-1].last
        if before:
            self.blocks = (*self.blocks[:-1], self.blocks[-1]._replace(last=""))
        if kind == "word" and text in _COMPOUND:
            self._header(text.decode(), text.decode(), out)
        elif kind == "word" and text in _CLAUSES:
            if before not in _CLAUSES[text]:
                self._fail(out)
            else:
                self._header(f"{before} {text.decode()}", before, out)
        elif kind == "word" and text == b"case" and self.blocks[-1].clause == "match":
            self._header("match case", "", out)
        elif kind == "word" and text in _SIMPLE:
            self._emit(_SIMPLE[text], out)
        elif kind == "word" and text == b"async":
            self._emit("async", out)
        elif kind == "word" and text == b"match":
            self.path, self.matching, self.last = "match?", True, _OPERAND
        elif text == b"@":
            self._emit("decorator", out)
        else:
            self._emit("expression", out)
            self._expression(kind, text, out)

    def _header(self, clause: str, family: str, out: list[Symbol]) -> None:
        """A compound statement or a clause of one begins."""
        self.clause = clause
        self.blocks = (*self.blocks[:-1], self.blocks[-1]._replace(last=family))
        self._emit(clause, out)

    def _go_on(self, kind: str, text: bytes, out: list[Symbol]) -> None:
        if self.matching:
            self.matching = False
            operand = kind in ("number", "string") or (kind == "word" and text not in _INFIX - _BEFORE_OPERANDS)
            if operand or (kind == "open" and self.spaced):
                self.last = _NOTHING
                self._header("match", "", out)
            else:
                self._emit("expression", out)
        if self.path == "async":
            if text in _ASYNC:
                self._header(f"async {text.decode()}", text.decode(), out)
            else:
                self._fail(out)
            return
        if not self.brackets:
            if text == b";":
                self._end(out)
                self.path = ""
                return
            if text == b":" and not self.lambdas:
                self._colon(out)
                return
            if not self.path.startswith("expression"):
                if not self.path.endswith(" .."):
                    self._emit(self.path + " ..", out)
            elif kind == "operator" and text.endswith(b"=") and text not in _COMPARISONS and self.path[-1] != "=":
                self._emit(self.path + " =", out)
        self._expression(kind, text, out)

    def _colon(self, out: list[Symbol]) -> None:
        if self.clause:
            self.opened = self.clause
            self._emit(self.path + " :", out)
            self.path = self.clause = ""
        elif self.path == "expression":
            self._emit("expression :", out)
            self.last = _OPERATOR
        else:
            self._fail(out)

    def _end(self, out: list[Symbol]) -> None:
        if self.matching:
            self.matching = False
            self._emit("expression", out)
        if self.clause or self.path == "async" or (self.last == _OPERATOR and not self.path.startswith("import")):
            self._fail(out)
        else:
            self._emit(self.path + " end", out)

    # --- expressions: operands do not follow each other, brackets match

    def _expression(self, kind: str, text: bytes, out: list[Symbol]) -> None:
        if kind == "word":
            if text in _OUTSIDE:
                self._fail(out)
            elif text in _INFIX:
                self.lambdas += text == b"lambda" and not self.brackets
                self.last = _COMMA if text == b"yield" else _OPERATOR
            else:
                self._operand(text, out)
        elif kind == "number":
            self._operand(text, out)
        elif kind == "string":
            if self.last == _OPERAND:
                self._fail(out)
            else:
                self.last = _STRING
        elif kind == "open":
            self.brackets = (*self.brackets, text)
            self.last = _OPERATOR
        elif kind == "close":
            if not self.brackets or self.brackets[-1] != _CLOSES[text]:
                self._fail(out)
            else:
                self.brackets = self.brackets[:-1]
                self.last = _OPERAND
        elif kind == "bad" or text == b";":
            self._fail(out)
        else:
            self.lambdas -= text == b":" and not self.brackets and self.lambdas > 0
            self.last = _COMMA if text == b"," else _OPERAND if text == b"..." else _OPERATOR

    def _operand(self, text: bytes, out: list[Symbol]) -> None:
        alias = self.path == "expression" and not self.brackets  # `type X = ...`: two words side by side
        if self.last in (_OPERAND, _STRING) and not (alias and self.typed):
            self._fail(out)
        else:
            self.last = _OPERAND
            self.typed = self.fresh and text == b"type"

    # --- the stack

    def _indent(self, out: list[Symbol]) -> None:
        """The blocks that a line at this column is in."""
        inside = self.blocks[-1].column
        if self.opened and self.column > inside:
            self.blocks = (*self.blocks, _Block(self.column, self.opened))
            return
        known = not self.opened and self.column <= inside
        while len(self.blocks) > 1 and self.blocks[-1].column > self.column:
            self.blocks = self.blocks[:-1]
        if self.blocks[-1].column != self.column:
            known = False
            self.blocks = (*self.blocks, _Block(self.column, "?"))  # such as the first line of an excerpt
        if not known:
            out.append(BREAK)

    def _emit(self, path: str, out: list[Symbol]) -> None:
        self.path = path
        out.append((path, self.blocks[-1].clause))

    def _fail(self, out: list[Symbol]) -> None:
        """No symbols until the line ends."""
        out.append(BREAK)
        self.failed, self.path, self.brackets, self.matching, self.opened = True, "failed", (), False, ""


@GRAMMARS.register
class Python:
    """Python 3, a line at a time: after an error it goes on with the next one."""

    name = "python"

    def start(self) -> _Parser:
        return _Parser()

    def feed(self, state: _Parser, text: bytes) -> Fed:
        return self._advanced(state, text, final=False)

    def close(self, state: _Parser) -> list[Symbol]:
        if not state.lex.held and not state.matching:
            return []
        after = self._advanced(state, b"", final=True)
        return [*after.symbols, *([("expression", after.state.blocks[-1].clause)] if after.state.matching else [])]

    def _advanced(self, state: _Parser, text: bytes, final: bool) -> Fed:
        parser = state.copy()
        parser.lex, lexemes = cut(state.lex, text, final)
        symbols: list[Symbol] = []
        for kind, lexeme in lexemes:
            parser.read(kind, lexeme, symbols)
        return Fed(parser, symbols)
