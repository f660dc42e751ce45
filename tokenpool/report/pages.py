"""Pages from templates: each is one file that needs nothing beside it and no network.

`templates/base.html.j2` holds style, Plotly and the script that draws every figure in the reader's colours, light or
dark; `templates/macros.html.j2` says how a figure, a table and a verdict look. A page's own template has its words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import plotly.graph_objects as go
import plotly.io as pio
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tokenpool.data.files import replace_file
from tokenpool.report.claims import FAILS, HOLDS, UNTESTED, Claim, Verdict, same
from tokenpool.report.figures import forest
from tokenpool.report.stats import Effect

#: verdict -> style and sign; the words say the same
SIGNS = {HOLDS: ("yes", "✓"), FAILS: ("no", "✗"), UNTESTED: ("none", "–")}


class Listing(NamedTuple):
    """Lines of text under a header."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]

    def markdown(self) -> str:
        head, *lines = (f"| {' | '.join(cell.strip() for cell in line)} |" for line in (self.head, *self.lines))
        return "\n".join((head, "|---" * len(self.head) + "|", *lines))


def render(path: Path, template: str, title: str, **context: Any) -> None:
    """Write a page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = _environment().get_template(f"{template}.html.j2")
    page = found.render(title=title, plotly=Markup(get_plotlyjs()), **context)
    with replace_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _environment() -> jinja2.Environment:
    found = jinja2.Environment(loader=jinja2.PackageLoader("tokenpool.report"), autoescape=True, trim_blocks=True,
                               lstrip_blocks=True, undefined=jinja2.StrictUndefined,
                               finalize=lambda v: v.replace(" %", "\u00a0%") if type(v) is str else v)
    found.filters |= {"spec": _spec, "opening": opening}
    found.globals["sign"] = lambda status: SIGNS.get(status, ("mixed", "~"))
    return found


def _spec(figure: go.Figure) -> Markup:
    """A figure as JSON that may stand inside a script."""
    return Markup(pio.to_json(figure, validate=False).replace("</", "<\\/"))


def opening(words: str) -> str:
    """With a capital letter in front; all others stay."""
    return words[:1].upper() + words[1:]


# ---- claims ----

@dataclass(frozen=True)
class ClaimView:
    """One claim on all data sets: verdicts, a forest plot, what to see in it, the numbers."""

    claim: Claim
    verdicts: Mapping[str, Verdict]
    figure: go.Figure | None
    see: str
    numbers: Listing


def claim_views(said: Mapping[str, Sequence[Verdict]]) -> list[ClaimView]:
    """Data set -> its verdicts, in the same order for all: one view per claim."""
    views = []
    for group in zip(*said.values(), strict=True):
        named = dict(zip(said, group, strict=True))
        claim = group[0].claim
        band = claim.margin if claim.rule is same else 0.0
        views.append(ClaimView(claim, named, forest(named, band), _see(named, band), _numbers(named)))
    return views


def _see(named: Mapping[str, Verdict], band: float) -> str:
    said = []
    for name, verdict in named.items():
        effects = (*verdict.effects, *verdict.beside)
        above, below = sum(e.low > 0 for e in effects), sum(e.high < 0 for e in effects)
        rest = "; the others are not significantly different from 0" if above + below < len(effects) else ""
        words = f"{above} of {len(effects)} differences clearly above 0, {below} clearly below{rest}. "
        start = f"{opening(name)}: " if len(named) > 1 else ""
        said.append(start + words * bool(effects) + verdict.note)
    if band:
        said.append(f"Grey band: up to {100 * band:g} point{'s' if band > 0.01 else ''} counts as the same.")
    return " ".join(said)


def _numbers(named: Mapping[str, Verdict]) -> Listing:
    places: dict[tuple[str, str], dict[str, Effect]] = {}
    for name, verdict in named.items():
        for e in (*verdict.effects, *verdict.beside):
            places.setdefault((e.label, e.budget), {})[name] = e
    return Listing("", ("difference in top-1, points", "budget", *named, "the paper"), [
        (*place, *(str(effects[name]) if name in effects else "" for name in named), _paper(effects.values()))
        for place, effects in places.items()])


def _paper(effects: Iterable[Effect]) -> str:
    return next((f"{100 * e.paper:+.1f}" for e in effects if e.paper is not None), "")
