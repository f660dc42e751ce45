r"""Formulas as MathML, made when a page is built: the reader needs neither JavaScript nor a network.

A Sphinx extension: `html_math_renderer = "mathml"`. Docutils brings the converter; what it does not know it
refuses, and that stops the build with the page and the formula. `SPELLINGS` are ways to write things that it lacks and
our notebooks, which JupyterLab shows with MathJax, may use: \dots, \operatorname*{arg\,min}, align, ...
"""

from __future__ import annotations

import html
import re

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

_GROUP = r"(?:\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}|\\[a-zA-Z]+(?:\{[^{}]*\})?|[a-zA-Z0-9])"
_SIZED = r"(?<!\\left)(?<!\\right)(?<![bB]ig[glr])(?<![bB]igg[lr])"
SPELLINGS: tuple[tuple[str, str], ...] = (
    (r"\\dots(?![a-zA-Z])", r"\\ldots"),
    (r"\\(?:bm|boldsymbol)(?![a-zA-Z])", r"\\mathbfit"),           # a letter of its own, not a smeared one
    (r"\\(?:texttt|textsf|textit|textbf)(?=\s*\{)", r"\\text"),
    (r"(\\text\{[^{}]*?)\\([_%&#])", r"\1\2"),
    (r"\\operatorname\*\{\s*arg(?:\\[,;:! ]|\s)*(min|max)\s*\}", r"\\arg\1"),
    (r"(\\operatorname\{[^{}]*)\\[,;: ]", "\\1\N{THIN SPACE}"),
    (r"\\(begin|end)\{(?:align|split|gather|equation)(?:ed)?\*?\}", r"\\\1{aligned}"),
    (rf"(\\underbrace\s*{_GROUP})\s*_({_GROUP})", r"\\underset{\2}{\1}"),
    # fences that no \left or \big sizes are as high as a letter; MathML would stretch them to the whole row.
    # The empty spaces are marks for `_TOUCHES` below.
    (r"\\(big|Big|bigg|Bigg)(?=[^a-zA-Z])", r"\\\1l"),
    (rf"{_SIZED}(\\(?:[lr](?:vert|Vert|angle|floor|ceil|brace)|Vert)(?![a-zA-Z])|\\[|{{}}])", r"\\hspace{0em}\1"),
    # an accent with an index: the index belongs beside the letter, not below it
    (rf"\\(?:hat|bar|tilde|vec|dot|ddot|check|widehat|widetilde|overline)(?![a-zA-Z])\s*{_GROUP}",
     r"{\g<0>\\hspace{0pt}}"),
)
_THIN = '<mspace width="0.17em"></mspace>'
_TOUCHES = (
    (r'<mspace width="0em"></mspace>((?:<m(?:sub|sup|subsup)>)?<mo)([^>]*>[|‖⟨⌊⌈{}⟩⌋⌉])', r'\1 stretchy="false"\2'),
    (r'(<mo stretchy="false") class="mathopen"', r'\1 form="prefix"'),
    (r'<mspace width="0(?:em|pt)"></mspace>', ""),
    (r'<mo(?= stretchy="false">[|‖⟩⌋⌉}]</mo>)', r'<mo form="postfix"'),
    (r'<mtable class="ams-align">', '<mtable class="ams-align" displaystyle="true">'),
    # a thin space on both sides of log, exp, ... unless a bracket follows
    (r"(</m(?:i|n|sub|sup|subsup|row|frac)>)(<mi[^>]*>[^<]{2,}</mi><mo>&ApplyFunction;</mo>)", rf"\1{_THIN}\2"),
    (r"(<mo>&ApplyFunction;</mo>)(?=<m(?:i|n|sub|sup|subsup|frac|over|row)>(?!<mo))", rf"\1{_THIN}"),
    (r"<msqrt>(?=<m[in]>[^<]*</m[in]></msqrt>)", '<msqrt class="tp-root">'),
)
# operators whose index stands below them in a displayed formula
latex2mathml.operators |= {"argmin": "arg\N{THIN SPACE}min", "argmax": "arg\N{THIN SPACE}max"}
latex2mathml.movablelimits += ("argmin", "argmax")

log = logging.getLogger(__name__)


def mathml(formula: str, block: bool = False) -> str:
    """LaTeX -> a `<math>` element that keeps the LaTeX as its `alttext`.

    Raises:
        MathError: a command that neither docutils nor `SPELLINGS` knows, or braces that do not match.
    """
    bare = re.sub(r"\\.", "", formula)
    if bare.count("{") != bare.count("}"):
        raise MathError("The braces do not match.")
    spelled = formula.strip()
    for pattern, wanted in SPELLINGS:
        spelled = re.sub(pattern, wanted, spelled)
    try:
        made = re.sub(r"\n\s*", "", latex2mathml.tex2mathml(spelled, as_block=block))
    except AttributeError:                                    # docutils: rows without an environment around them
        raise MathError("Rows (& and \\\\) belong into an environment such as aligned.") from None
    for pattern, wanted in _TOUCHES:
        made = re.sub(pattern, wanted, made)
    words = html.escape(" ".join(formula.split()), quote=True)
    return made.replace("<math ", f'<math alttext="{words}" ', 1)


def _write(self: HTML5Translator, node: nodes.Element, block: bool) -> None:
    formula = node.astext()
    try:
        made = mathml(formula, block)
    except MathError as error:
        log.warning("the formula %r cannot be shown: %s Write it with other commands, or add a spelling to "
                    "docs/mathml.py.", formula, error, location=node)
        made = f"<code>{html.escape(formula)}</code>"
    self.body.append(f'<div class="math">{made}</div>' if block else made)
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (lambda self, node: _write(self, node, False), None),
                               (lambda self, node: _write(self, node, True), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
