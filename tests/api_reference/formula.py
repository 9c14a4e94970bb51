"""Formulas as docstrings write them become MathML, which browsers show without JavaScript.

    relation = sum (("=" | "<" | "in" | "," | ...) sum)*
    sum      = ["-"] product (("+" | "-") product)*
    product  = factor (("·" | "/") factor)*
    factor   = "-" factor | "Σ_..." product | "log" factor | power
    power    = postfix ["²" | "^" postfix]
    postfix  = primary | postfix "(" relation ")" | postfix "[" relation "]"
    primary  = number | name | "(" relation ")" | "|" sum "|" | "‖" sum "‖" ["_" name] | "√" primary

Names of one letter are italic, longer ones upright. What follows an underscore is a subscript if it has at
most two letters (`loss_i`, `z_ij`), else a part of the name (`pos_weight`). Indices in brackets are
subscripts. Anything else is a FormulaError.
"""

import re
from collections.abc import Sequence
from html import escape
from xml.etree.ElementTree import Element, tostring

_NAME = r"[A-Za-z\u0391-\u03c9][A-Za-z0-9₁₂]*(?:_[A-Za-z0-9]+)*_?"
_TOKEN = re.compile(rf"\d+(?:\.\d+)?|{_NAME}|<=|>=|\S")
_RELATIONS = {sign: sign for sign in "=<>≤≥≠∈∉,‖"} | {"<=": "≤", ">=": "≥", "in": "∈"}
_FRACTIONS = {"½": "12", "⅔": "23"}
_SUPERSCRIPTS = {"²": "2", "³": "3"}
_SUBSCRIPTS = {"₁": "1", "₂": "2"}
_SPELLINGS = {ord("µ"): "μ"}  # the micro sign is not an italic letter in mathematics
_FUNCTIONS = {"log", "cos", "sin", "mean"}  # which need no parentheses
_OVER_INDICES = {"Σ": "∑", "mean": "mean"}
_MINUS = "\u2212"  # a hyphen would be shown as one
_FENCES = {"(": ")", "|": "|", "‖": "‖"}


class FormulaError(ValueError):
    """A formula has a character or a construct that the translation does not know."""


def _leaf(tag: str, text: str, **attributes: str) -> Element:
    element = Element(tag, attributes)
    element.text = text.replace("-", _MINUS)
    return element


def _of(tag: str, *children: Element) -> Element:
    element = Element(tag)
    element.extend(children)
    return element


def _row(parts: Sequence[Element]) -> Element:
    return parts[0] if len(parts) == 1 else _of("mrow", *parts)


def _infix(sign: str) -> Element:
    return _leaf("mo", sign, form="infix")


def _fenced(opening: str, parts: Sequence[Element], closing: str) -> Element:
    is_tall = any(part.tag in ("mfrac", "munder") for part in _of("mrow", *parts).iter())
    stretchy = str(is_tall).lower()
    left = _leaf("mo", opening, form="prefix", stretchy=stretchy)
    group = _of("mrow", left, *parts, _leaf("mo", closing, form="postfix", stretchy=stretchy))
    if opening == "(":
        group.set("class", "group")
    return group


def _without_parentheses(parts: Sequence[Element]) -> Element:
    is_group = len(parts) == 1 and parts[0].get("class") == "group"
    return _row([*parts[0]][1:-1] if is_group else parts)


def _subscript(base: Element, index: Element) -> Element:
    if base.tag == "msub":  # q_t[k]: one subscript with both
        return _of("msub", base[0], _row([base[1], _infix(","), index]))
    return _of("msub", base, index)


def _superscript(base: Element, exponent: Element) -> Element:
    if exponent.tag == "mfrac":
        exponent = _of("mrow", exponent[0], _leaf("mo", "/"), exponent[1])
    return _of("msubsup", *base, exponent) if base.tag == "msub" else _of("msup", base, exponent)


def _index(letters: str) -> Element:
    return _row([_leaf("mi", letter) for letter in letters]) if len(letters) <= 2 else _leaf("mi", letters)


def _name(name: str) -> Element:
    base, _, index = name.partition("_")
    if name[-1] in _SUBSCRIPTS:
        return _of("msub", _leaf("mi", name[:-1]), _leaf("mn", _SUBSCRIPTS[name[-1]]))
    is_indexed = index.isalpha() and len(index) <= 2
    return _of("msub", _leaf("mi", base), _index(index)) if is_indexed else _leaf("mi", name)


class _Parser:
    """Recursive descent by the grammar above; a list of elements is a row that has not been made one yet."""

    def __init__(self, text: str):
        self.text = text
        self.tokens = [*reversed(_TOKEN.findall(text.translate(_SPELLINGS).replace("not in", "∉")))]

    def peek(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def take(self, *expected: str) -> str:
        token = self.peek()
        if not token or (expected and token not in expected):
            raise FormulaError(f"expected {expected or 'more'}, got {token or 'the end'!r} in: {self.text}")
        return self.tokens.pop()

    def whole(self) -> list[Element]:
        parts = self.relation()
        if self.tokens:
            raise FormulaError(f"unexpected {self.peek()!r} in: {self.text}")
        return parts

    def relation(self) -> list[Element]:
        parts = self.sum()
        while self.peek() in _RELATIONS:
            parts += [_infix(_RELATIONS[self.take()]), *self.sum()]
        return parts

    def sum(self) -> list[Element]:
        sign = [_leaf("mo", self.take(), form="prefix")] if self.peek() == "-" else []
        parts = [*sign, *self.product()]
        while self.peek() in ("+", "-"):
            parts += [_infix(self.take()), *self.product()]
        return parts

    def product(self) -> list[Element]:
        done, parts = [], self.factor()  # what stands before the current fraction, and its factors
        while self.peek() in ("·", "/"):
            if self.take() == "/":
                over = _without_parentheses(self.factor())
                parts = [_of("mfrac", _without_parentheses(parts), over)]
            elif parts[0].tag == "mfrac":
                done, parts = [*done, *parts, _infix("·")], self.factor()
            else:
                parts += [_infix("·"), *self.factor()]
        return [*done, *parts]

    def factor(self) -> list[Element]:
        base, underscore, index = self.peek().partition("_")
        if self.peek() == "-":
            return [_fenced("(", [_leaf("mo", self.take(), form="prefix"), *self.factor()], ")")]
        if base == "Σ" or (base in _OVER_INDICES and underscore):
            self.take()
            return [self.over_indices(base, underscore, index), *self.product()]
        if base in _FUNCTIONS and not underscore and re.match(_NAME, "".join(self.tokens[-2:-1])):
            return [_leaf("mi", self.take()), Element("mspace", width="0.17em"), *self.factor()]
        return [self.power()]

    def over_indices(self, base: str, underscore: str, index: str) -> Element:
        sign = _leaf("mo", _OVER_INDICES[base], movablelimits="false")
        if not underscore:
            return sign
        if index:
            return _of("munder", sign, _index(index))
        self.take("{")
        indices = self.relation()
        self.take("}")
        return _of("munder", sign, _row(indices))

    def power(self) -> Element:
        base = self.postfix()
        if self.peek() in _SUPERSCRIPTS:
            return _superscript(base, _leaf("mn", _SUPERSCRIPTS[self.take()]))
        if self.peek() == "^":
            self.take()
            return _superscript(base, _without_parentheses([self.postfix()]))
        return base

    def postfix(self) -> Element:
        is_name = re.fullmatch(_NAME, self.peek())
        element = self.primary()
        while is_name and self.peek() in ("(", "["):
            if self.peek() == "(":
                element = _row([element, _leaf("mo", "\u2061"), self.fenced(self.take())])
            else:
                self.take()
                element = _subscript(element, _row(self.relation()))
                self.take("]")
        return element

    def primary(self) -> Element:
        token = self.take()
        if token[0].isdecimal():
            return _leaf("mn", token)
        if token in _FRACTIONS:
            return _of("mfrac", *(_leaf("mn", digit) for digit in _FRACTIONS[token]))
        if token in ("√", "sqrt"):
            return _of("msqrt", _without_parentheses([self.fenced(self.take("("))]))
        if token in _FENCES:
            return self.fenced(token)
        if token == "∞" or re.fullmatch(_NAME, token):
            return _leaf("mi", token) if token == "∞" else _name(token)
        raise FormulaError(f"unexpected {token!r} in: {self.text}")

    def fenced(self, opening: str) -> Element:
        inner = self.relation() if opening == "(" else self.sum()
        group = _fenced(opening, inner, self.take(_FENCES[opening]))
        if opening == "‖" and self.peek() == "_":
            self.take()
            return _of("msub", group, _name(self.take()))
        return group


def _math(parts: Sequence[Element]) -> str:
    math = _of("math", *parts)
    math.set("displaystyle", "true")
    return tostring(math, encoding="unicode")


def mathml(text: str) -> list[str]:
    """Returns a formula as `math` elements, between which a line may be broken."""
    pieces: list[list[Element]] = [[]]
    for part in _Parser(text).whole():
        if pieces[-1] and part.get("form") == "infix" and part.text in ("=", "+", _MINUS):
            pieces.append([])
        pieces[-1].append(part)
    return [_math(piece) for piece in pieces]


def block(lines: Sequence[str]) -> str:
    """Returns the HTML of a block: a formula a line, and after two spaces or more words that belong to it.

    An indented line continues the formula above it. A quoted word at the start of a line, and two spaces, are
    the option whose formula follows.
    """
    rows: list[tuple[str, str, str]] = []
    for line in lines:
        formula, *words = re.split(r"\s{2,}", re.sub(r"\s+=\s+", " = ", line.strip()))
        option = ""
        if formula.startswith('"'):
            option, formula, *words = formula, *words
        if line.startswith(" ") and rows:
            formula = f"{rows.pop()[1]} {formula}"
        rows.append((option, formula, " ".join(words)))
    return f'<dl class="formula">{"".join(_html(*row) for row in rows)}</dl>'


def _html(option: str, formula: str, words: str) -> str:
    if words and not words[0].isalpha():
        raise FormulaError(f"{words!r} are not words, in: {formula}")
    term, value = re.sub(r'"\w+"', r"<code>\g<0></code>", option), formula
    if " = " in formula:
        name, value = formula.split(" = ", 1)
        term = _math([*_Parser(name).whole(), _infix("=")])
    words = re.sub("`(.*?)`", r"<code>\1</code>", escape(words, quote=False))
    html = f"<dt>{term}</dt><dd>{'<wbr/>'.join(mathml(value))}</dd>"
    return f"{html}<dd>{words}</dd>" if words else html
