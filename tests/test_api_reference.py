"""The API reference: every public name has its page, and every formula of a docstring is translated."""

import importlib
import inspect
import re
from typing import Any
from xml.etree import ElementTree

import pytest

import jaxloss
from jaxloss import models, training
from tests.api_reference.docstring import formula_blocks, of_member, of_module
from tests.api_reference.formula import FormulaError, block, mathml
from tests.api_reference.pages import pages
from tests.case import public_losses


def found(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_every_public_name_stands_on_one_page():
    named = [member for page in pages() for member in page.members]
    public = {f"jaxloss.{name}" for name, value in vars(jaxloss).items() if callable(value)}
    public |= {f"jaxloss.models.{name}" for name in models.__all__}
    public |= {f"jaxloss.training.{name}" for name, value in vars(training).items() if callable(value)}
    assert len(named) == len({*named})
    assert {*named} == public


def test_pages_know_where_names_are_defined():
    for page in pages():
        assert page.module == importlib.import_module(page.module).__name__
        for member, home in page.members.items():
            assert found(member) is found(home)
            assert home == f"{found(home).__module__}.{found(home).__name__}"


@pytest.mark.parametrize("loss", sorted(public_losses()))
def test_formulas_of_losses_are_blocks_and_translated(loss: str):
    docstring = inspect.getdoc(getattr(jaxloss, loss)) or ""
    assert formula_blocks(docstring)
    assert not re.search(r"\n\n\w+ = ", docstring)
    for lines in formula_blocks(docstring):
        html = ElementTree.fromstring(block(lines))
        assert letters(" ".join(html.itertext())) == letters(" ".join(lines))


def letters(text: str) -> list[str]:
    for sign, said in zip("½⅔²₁₂µ", ("12", "23", "2", "1", "2", "μ"), strict=True):
        text = text.replace(sign, said)
    return re.findall(r"[^\W_Σ]", re.sub(r"\b(?:sqrt|in|not)\b", "", text))


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("e", "<mi>e</mi>"),
        ("pos_weight", "<mi>pos_weight</mi>"),
        ("z_ij", "<msub><mi>z</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub>"),
        ("C₁", "<msub><mi>C</mi><mn>1</mn></msub>"),
        ("p[y]", "<msub><mi>p</mi><mi>y</mi></msub>"),
        ("q_t[k]", "<msub><mi>q</mi><mrow><mi>t</mi>{,}<mi>k</mi></mrow></msub>"),
        ("e²", "<msup><mi>e</mi><mn>2</mn></msup>"),
        ("µ_p²", "<msubsup><mi>μ</mi><mi>p</mi><mn>2</mn></msubsup>"),
        ("e^(a + b)", "<msup><mi>e</mi><mrow><mi>a</mi>{+}<mi>b</mi></mrow></msup>"),
        ("e^(a / 2)", "<msup><mi>e</mi><mrow><mi>a</mi><mo>/</mo><mn>2</mn></mrow></msup>"),
        ("½ · 2.5", "<mfrac><mn>1</mn><mn>2</mn></mfrac>{·}<mn>2.5</mn>"),
        ("a · b / 2", "<mfrac><mrow><mi>a</mi>{·}<mi>b</mi></mrow><mn>2</mn></mfrac>"),
        ("1 / C · x / y", "<mfrac><mn>1</mn><mi>C</mi></mfrac>{·}<mfrac><mi>x</mi><mi>y</mi></mfrac>"),
        ("(a + b) / c", "<mfrac><mrow><mi>a</mi>{+}<mi>b</mi></mrow><mi>c</mi></mfrac>"),
        ("√(x)", "<msqrt><mi>x</mi></msqrt>"),
        ("sqrt(x)", "<msqrt><mi>x</mi></msqrt>"),
        ("|e|", "<mrow>{(|}<mi>e</mi>{|)}</mrow>"),
        ("‖x‖_p", "<msub><mrow>{(‖}<mi>x</mi>{‖)}</mrow><mi>p</mi></msub>"),
        ("Σ_c x", "<munder>{∑}<mi>c</mi></munder><mi>x</mi>"),
        ("Σ_path x", "<munder>{∑}<mi>path</mi></munder><mi>x</mi>"),
        ("Σ_{i not in T} x", "<munder>{∑}<mrow><mi>i</mi>{∉}<mi>T</mi></mrow></munder><mi>x</mi>"),
        ("Σ_{j >= i} x", "<munder>{∑}<mrow><mi>j</mi>{≥}<mi>i</mi></mrow></munder><mi>x</mi>"),
        ("mean_c x", "<munder>{mean}<mi>c</mi></munder><mi>x</mi>"),
        ("log p", '<mi>log</mi><mspace width="0.17em" /><mi>p</mi>'),
        ("cos", "<mi>cos</mi>"),
    ],
)
def test_translation(formula: str, expected: str):
    operators = {sign: f'<mo form="infix">{sign}</mo>' for sign in "+·,∉≥"}
    operators |= {sign: f'<mo movablelimits="false">{sign}</mo>' for sign in ("∑", "mean")}
    operators |= {f"({sign}": f'<mo form="prefix" stretchy="false">{sign}</mo>' for sign in "|‖"}
    operators |= {f"{sign})": f'<mo form="postfix" stretchy="false">{sign}</mo>' for sign in "|‖"}
    for name, operator in operators.items():
        expected = expected.replace(f"{{{name}}}", operator)
    assert mathml(formula) == [f'<math displaystyle="true">{expected}</math>']


def test_parentheses_stay_where_they_mean_something():
    def text(formula: str) -> str:
        return "".join(ElementTree.fromstring(*mathml(formula)).itertext()).replace("\u2061", "")

    assert text("2 · (h / (2 · b))²") == "2·(h2·b)2"
    assert text("f(x) / 2") == "f(x)2"
    assert text("w · -log p") == "w·(\u2212logp)"
    assert text("|x| / 2") == "|x|2"


def test_a_line_may_be_broken_between_terms():
    assert len(mathml("-a · (b + c) - d")) == 2


@pytest.mark.parametrize(
    "formula",
    [
        "",
        "a b",
        "2 z",
        "(a",
        "a)",
        "a +",
        "p[y",
        "a # b",
        "|a",
        "Σ_{i",
        "a ² b",
        "x = ",
        "½ (a)",
        "a where b",
    ],
)
def test_what_is_not_understood_is_an_error(formula: str):
    with pytest.raises(FormulaError):
        mathml(formula)


def test_block_has_terms_values_and_words():
    html = block(["a  = 1 +", "    2   where `b` < 3", '"x" and "y"   -c'])
    text = [" ".join("".join(part.itertext()).split()) for part in ElementTree.fromstring(html)]
    assert text == ["a=", "1+2", "where b < 3", '"x" and "y"', "\u2212c"]
    with pytest.raises(FormulaError, match="are not words"):
        block(["a = 1  + 2"])


def test_sections_of_members():
    docstring = """Summary.

    a = b

Args:
    x: Text.

Example:
    >>> 1
    1

Differences from PyTorch:
    * One,
      and more.
    * Two.
"""
    head, sections = of_member(docstring).split("Args:")
    assert head == f"Summary.\n\n{block(['a = b'])}\n\n"
    assert sections == (
        "\n    x: Text.\n\nExamples:\n    >>> 1\n    1\n\n"
        "**Differences from PyTorch:**\n\n* One,\n  and more.\n* Two.\n\n"
    )


def test_terms_and_sessions_of_modules():
    session, terms = "    >>> 1\n    1\n", "where: A mask\n    of booleans.\nMore words\n    Text."
    assert of_module(f"Summary: text.\n\n{session}\n{terms}") == (
        "Summary: text.\n\n```pycon\n>>> 1\n1\n```\n\n"
        "\nwhere\n:   A mask\n    of booleans.\n\nMore words\n:   Text.\n"
    )
