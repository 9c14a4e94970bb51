"""Formulas as docstrings write them become MathML, which browsers show without JavaScript.

    relation = sum (("=" | "<" | "in" | "," | ...) sum)*
    sum      = ["-"] product (("+" | "-") product)*
    product  = factor (("·" | "/") factor)*
    factor   = "-" factor | "Σ_..." product | "log" factor | power
    power    = postfix ["²" | "^" postfix]
    postfix  = primary | postfix "(" relation ")" | postfix "[" relation "]"
    primary  = number | name | "(" relation ")" | "|" sum "|" | "‖" sum "‖" ["_" name] | "√" primary

Names of one letter are italic, longer ones upright. What follows an underscore is a subscript if it has at most
two letters (`loss_i`, `z_ij`), else a part of the name (`pos_weight`). Indices in brackets are subscripts.
Anything else is a FormulaError.
"""

import re
from collections.abc import Sequence
from html import escape
from xml.etree.ElementTree import Element, tostring

_NAME = r"[A-Za-zΑ-ωµ][A-Za-z0-9₁₂]*(?:_[A-Za-z0-9]+)*_?"
_TOKEN = re.compile(rf"\d+(?:\.\d+)?|{_NAME}|<=|>=|\S")
_RELATIONS = {sign: sign for sign in "=<>≤≥≠∈∉,‖"} | {"<=": "≤", ">=": "≥", "in": "∈", "not": "∉"}
_FRACTIONS = {"½": "12", "⅔": "23"}
_SUPERSCRIPTS = {"²": "2", "³": "3"}
_SUBSCRIPTS = str.maketrans("₁₂", "12")
_FUNCTIONS = {"log", "cos", "sin", "mean"}  # which need no parentheses
_OVER_INDICES = {"Σ": "∑", "mean": "mean"}
_FENCES = {"(": ")", "|": "|", "‖": "‖"}


class FormulaError(ValueError):
    """A formula has a character or a construct that the translation does not know."""


def _leaf(tag: str, text: str, **attributes: str) -> Element:
    element = Element(tag, attributes)
    element.text = text
    return element


def _of(tag: str, *children: Element) -> Element:
    element = Element(tag)
    element.extend(children)
    return element


def _row(parts: Sequence[Element]) -> Element:
    return parts[0] if len(parts) == 1 else _of("mrow", *parts)


def _infix(sign: str) -> Element:
    return _leaf("mo", sign, form="infix")


def _without_parentheses(parts: Sequence[Element]) -> Element:
    is_group = len(parts) == 1 and parts[0].get("class") == "group"
    return _row([*parts[0]][1:-1] if is_group else parts)


def _subscript(base: Element, index: Element) -> Element:
    if base.tag == "msub":  # q_t[k]: one subscript with both
        return _of("msub", base[0], _row([base[1], _infix(","), index]))
    return _of("msub", base, index)


def _superscript(base: Element, exponent: Element) -> Element:
    return _of("msubsup", *base, exponent) if base.tag == "msub" else _of("msup", base, exponent)


def _name(name: str) -> Element:
    base, _, index = name.partition("_")
    if re.search("[₁₂]$", name):
        return _of("msub", _leaf("mi", name[:-1]), _leaf("mn", name[-1].translate(_SUBSCRIPTS)))
    if re.fullmatch("[a-z]{1,2}", index):
        return _of("msub", _leaf("mi", base), _row([_leaf("mi", letter) for letter in index]))
    return _leaf("mi", name)


class _Parser:
    """Recursive descent over the tokens; a list of elements is a row of which lines may be broken."""

    def __init__(self, text: str):
        self.text = text
        self.tokens = [*reversed(_TOKEN.findall(text.replace("not in", "not")))]

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
        parts = [_leaf("mo", "−", form="prefix")] if self.peek() == "-" and self.take() else []
        parts += self.product()
        while self.peek() in ("+", "-"):
            parts += [_infix(self.take().replace("-", "−")), *self.product()]
        return parts

    def product(self) -> list[Element]:
        parts = self.factor()
        while self.peek() in ("·", "/"):
            if self.take() == "·":
                parts += [_infix("·"), *self.factor()]
            else:
                over = _without_parentheses(self.factor())
                parts = [_of("mfrac", _without_parentheses(parts), over)]
        return parts

    def factor(self) -> list[Element]:
        base, underscore, index = self.peek().partition("_")
        if self.peek() == "-":
            self.take()
            return [_leaf("mo", "−", form="prefix"), *self.factor()]
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
            return _of("munder", sign, _name(index) if len(index) > 2 else _row([_leaf("mi", i) for i in index]))
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
        closing = self.take(_FENCES[opening])
        is_tall = any(part.tag in ("mfrac", "munder") for part in _of("mrow", *inner).iter())
        fence = {"stretchy": str(is_tall).lower()}
        ends = (_leaf("mo", opening, form="prefix", **fence), _leaf("mo", closing, form="postfix", **fence))
        group = _of("mrow", ends[0], *inner, ends[1])
        if opening == "(":
            group.set("class", "group")
        if opening == "‖" and self.peek() == "_":
            self.take()
            return _of("msub", group, _name(self.take()))
        return group


def _math(parts: Sequence[Element]) -> str:
    math = _of("math", *parts)
    math.set("displaystyle", "true")
    return tostring(math, encoding="unicode")


def mathml(text: str) -> list[str]:
    """Returns a formula as `math` elements, between which a line may be broken; the first ends in "=", if any."""
    pieces: list[list[Element]] = [[]]
    for part in _Parser(text).whole():
        is_break = part.tag == "mo" and part.get("form") == "infix" and part.text in "=+−"
        if is_break and pieces[0] and not (part.text == "=" and len(pieces) == 1):
            pieces.append([])
        pieces[-1].append(part)
        if part.text == "=" and len(pieces) == 1:
            pieces.append([])
    return [_math(piece) for piece in pieces if piece]


def _prose(text: str) -> str:
    return re.sub("`(.*?)`", r"<code>\1</code>", escape(text, quote=False))


def block(lines: Sequence[str]) -> str:
    """Returns the HTML of a block: a formula a line, and after two spaces or more the words that belong to it.

    An indented line continues the formula above it. A line that starts with a quoted word is the formula of an
    option.
    """
    rows: list[list[str]] = []
    for line in lines:
        columns = re.split(r"\s{2,}", re.sub(r"\s+=\s+", " = ", line.strip()))
        if line.startswith(" ") and rows:
            columns[0] = f"{rows.pop()[0]} {columns[0]}"
        rows.append(columns)
    html = ""
    for columns in rows:
        name = f"<code>{columns.pop(0)}</code>" if columns[0].startswith('"') else ""
        pieces = mathml(columns[0])
        if not name and len(pieces) > 1 and ">=</mo></math>" in pieces[0]:
            name = pieces.pop(0)
        html += f"<dt>{name}</dt><dd>{'<wbr>'.join(pieces)}</dd>"
        html += f"<dd>{_prose(' '.join(columns[1:]))}</dd>" if columns[1:] else ""
    return f'<dl class="formula">{html}</dl>'
