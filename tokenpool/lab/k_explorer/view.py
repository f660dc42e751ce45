"""What a person sees of a `View`: its figure, its table, and words about it or about what a move changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from tokenpool.data.pebbles import REGIONS
from tokenpool.lab.k_explorer import settings
from tokenpool.lab.k_explorer.compute import GAP, Run, View, spoken
from tokenpool.lab.k_explorer.settings import DEPTH, POOLING, N, Setting, allowed, is_near, percent, tokens
from tokenpool.lab.kit.figure import BLUE, GREEN, GREY, INK, ORANGE, PURPLE

PLACES = ("image", *(f"block {b}" for b in range(1, DEPTH)))


# ---- figure and table ----

def figure(v: View) -> go.Figure:
    """Images, error by block, tokens left by region, cost, classes: 9 traces for one method, 14 for two.

    Written as data, because plotly's helpers for subplots take a third of a second at every move.
    """
    two = len(v.runs) == 2
    looks = list(zip(v.runs, ((GREEN, "."), (INK, "/")), strict=False))
    data: list[dict[str, Any]] = [dict(type="image", source=v.strip, hoverinfo="skip", xaxis="x1", yaxis="y1")]
    for run, look in looks:
        text = [f"{e:.2f}" if e else "" if two else "none" for e in run.error]
        data.append(_bars(2, look, PLACES[1:], [round(e, 3) for e in run.error], run.method, text=text))
    for place, run in enumerate(v.runs):
        for region, look in enumerate(((GREY, ""), (BLUE, "/"), (ORANGE, "x"))):
            data.append(_bars(
                3, look, PLACES, run.left[:, region].tolist(), REGIONS[region], offsetgroup=f"regions {place}",
                base=run.left[:, :region].sum(1).tolist(), showlegend=v.known and not place,
                hovertemplate=f"{run.method}: %{{y}} of {REGIONS[region]}<extra></extra>"))
    rows = ["plain model", *(run.method for run in v.runs)][::-1]                               # bars grow upwards
    without = [100.0, *(round(100 * run.share_without, 1) for run in v.runs)][::-1]
    every = [100.0, *(round(100 * run.share, 1) for run in v.runs)][::-1]
    extra = [round(e - w, 1) for e, w in zip(every, without, strict=True)]
    data.append(_bars(4, (GREY, ""), without, rows, "MACs of the blocks", orientation="h", offsetgroup="cost"))
    data.append(_bars(4, (PURPLE, "x"), extra, rows, "of the clustering", orientation="h", offsetgroup="cost",
                      base=without, text=[f"{e:g}" for e in every]))
    likely = np.argsort(-(v.before + sum(r.after for r in v.runs)), kind="stable")[:3][::-1].tolist()
    classes = [spoken(c).replace(", ", ",<br>") for c in likely]
    shown = [*((run.method, run.after, look) for run, look in looks), ("plain model", v.before, (PURPLE, ""))]
    for name, values, look in shown[::-1]:
        data.append(_bars(5, look, [round(100 * float(values[c]), 1) for c in likely], classes, name, orientation="h",
                          showlegend=name == "plain model"))
    return go.Figure(data=data, layout=_layout(v))


def _bars(panel: int, look: tuple[str, str], x: Any, y: Any, name: str, **more: Any) -> dict[str, Any]:
    colour, pattern = look
    return dict(type="bar", x=x, y=y, name=name, legendgroup=name, xaxis=f"x{panel}", yaxis=f"y{panel}",
                textfont_size=12, textposition="outside", cliponaxis=False,
                marker=dict(color=colour, pattern=dict(shape=pattern, fillmode="overlay"))) | more


def _layout(v: View) -> dict[str, Any]:
    """Four panels below one or two rows of images."""
    two = len(v.runs) == 2
    # heights in pixels, converted to shares of the plot: a second row of images moves the panels down
    images = 280 if two else 128
    tall = images + 515

    def up(low: float, high: float) -> tuple[float, float]:
        return 1 - (images + low) / tall, 1 - (images + high) / tall

    def axes(number: int, across: tuple[float, float], up: tuple[float, float], x: dict[str, Any], y: dict[str, Any]
             ) -> dict[str, Any]:
        return {f"xaxis{number}": dict(domain=across, anchor=f"y{number}", **x),
                f"yaxis{number}": dict(domain=up, anchor=f"x{number}", **y)}

    def heading(text: str, x: float, low: float) -> dict[str, Any]:
        return dict(text=text, x=x, y=up(0, low)[1], xref="paper", yref="paper", xanchor="center", yanchor="bottom",
                    showarrow=False, font_size=13)

    below = [f"image<br>{N}", *(f"block {b}<br>{k}" for b, k in enumerate(v.ks, start=1)), f"rebuilt<br>{v.ks[-1]}"]
    top = round(max(0.1, 1.25 * max(max(run.error) for run in v.runs)), 2)
    share = " and ".join(f"{run.share:.1%}" for run in v.runs)
    row = [dict(text=f"{run.method}", x=4, y=y, xref="x", yref="y", xanchor="left", yanchor="bottom", showarrow=False,
                font_size=13) for run, y in zip(v.runs, (0, 128 + GAP), strict=False)] if two else []
    return dict(
        title_text=f"{' '.join(map(str, v.ks))}: {share} of the MACs", height=tall + 190, barmode="group",
        margin=dict(l=56, r=16, t=72 if two else 50),
        annotations=[*row, heading("error of the pooling, by block", 0.21, 74),
                     heading("tokens left, by region" + ("" if v.known else ": unknown"), 0.77, 74),
                     heading("cost, % of the plain model", 0.21, 326), heading("class of the image", 0.77, 326)],
        **axes(1, (0, 1), up(0, -images),
               dict(tickvals=[68 + 136 * i for i in range(DEPTH + 1)], ticktext=below, tickangle=0, ticks="",
                    tickfont_size=12, showgrid=False, showline=False, range=[0, 136 * (DEPTH + 1)]),
               dict(visible=False, scaleanchor="x", range=[256 + GAP if two else 128, 0], constrain="domain",
                    constraintoward="top")),
        **axes(2, (0, 0.42), up(256, 78), dict(tickfont_size=11), dict(title_text="share lost", range=[0, top])),
        **axes(3, (0.56, 1), up(256, 78), dict(tickfont_size=11), dict(title_text="tokens", range=[0, 70])),
        **axes(4, (0.1, 0.42), up(515, 330), dict(title_text="MACs, %", range=[0, 118]), dict(tickfont_size=11)),
        **axes(5, (0.66, 1), up(515, 330), dict(title_text="probability, %", range=[0, 101]), dict(tickfont_size=11)))


def table(v: View) -> pd.DataFrame:
    return pd.concat([pd.DataFrame({
        "method": run.method, "after": PLACES[1:], "tokens": v.ks,
        "share of the variance lost": [round(e, 3) for e in run.error],
        **{f"tokens of {name}": run.left[1:, r] if v.known else "unknown" for r, name in enumerate(REGIONS)}})
        for run in v.runs])


# ---- words ----

def first_words(v: View) -> str:
    """The setting, its cost, and what it does to tokens and class."""
    run = v.runs[0]
    worst = int(np.argmax(run.error))
    return _joined(
        v.setting.note, allowed(v.setting.ks)[1],
        f"K = {_row(v.setting)} with {_way(v, run)}: {run.share:.1%} of the plain model's MACs, "
        f"{run.share_without:.1%} without the clustering.",
        f"Block {worst + 1} loses most, {run.error[worst]:.0%} of its tokens' variance." if max(run.error) > 0
        else "Nothing is pooled, so nothing is lost.",
        _class(v, v.before) if v.known else "The model was trained on pebbles only: its class for this image means "
        "nothing, and the regions are unknown. Look at the clusters.",
        _remains(v), _second(v), _unused(v))


def move_words(before: View, now: View, name: str) -> str:
    """What a move has changed, and why."""
    a, b, old, new = before.setting, now.setting, before.runs[0], now.runs[0]
    if (a.shown, a.own) != (b.shown, b.own):
        head = ("Another image, the same K: the MACs stay the same, they do not depend on the image."
                if name == "image" else _head(a, b, name))
        return f"{head} {first_words(now)}"
    head = _joined(_head(a, b, name), b.note, allowed(b.ks)[1])
    if (old.how, a.schedule, a.counts) == (new.how, b.schedule, b.counts):      # the first row of images is the same
        other = a.poolings != b.poolings
        return _joined(head, _second(now) if other else "", _unused(now) if other or name in ("init", "output") else "")
    return _joined(head, _cost_change(old, new, b), _error_change(before, now),
                   _class(now, old.after) if now.known else "",
                   _remains(now) if (old.left[-1] != new.left[-1]).any() else "",
                   _second(now), _unused(now) if old.how != new.how else "")


def _joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _row(setting: Setting) -> str:
    return " ".join(map(str, setting.schedule[:POOLING]))


def _head(a: Setting, b: Setting, name: str) -> str:
    """The move itself, and which other controls it moved."""
    row = " ".join(map(str, b.ks))
    if name.startswith("k"):
        block = int(name[1:]) - 1
        alone = a.ks[:block] + a.ks[block + 1:] == b.ks[:block] + b.ks[block + 1:]
        return (f"You moved block {block + 1} from {a.ks[block]} to {tokens(b.ks[block])}"
                + ("." if alone else f", and the lock moved the others: K = {row}."))
    moved = ""
    if b.preset == settings.BUDGET and a.ks != b.ks:
        moved = f" K = {row}."
    elif b.lock and b.ks != a.ks:
        moved = f" The lock moved K to {row}."
    match name:
        case "preset":
            return "You set the sliders." if b.preset == settings.BY_HAND else f"You chose *{b.preset}*: K = {row}."
        case "budget":
            return f"You asked for {b.budget}% of the MACs: the nearest geometric schedule is K = {row}."
        case "image":
            return ""
        case "lock":
            return (f"The budget is locked at {percent(b.target)} of the plain model's MACs: when you move one block, "
                    "the others make up for it." if b.lock else "The budget is unlocked: each block moves alone.")
        case "method":
            return f"You changed the method from {a.method} to {b.method} ({b.how.spec.story}).{moved}"
        case "init":
            return f"You changed the initialisation from {a.init} to {b.init}.{moved}"
        case "output":
            label = {value: name for name, value in settings.OUTPUTS.items()}
            return f"A clustering now returns {label[b.output]} instead of {label[a.output]}.{moved}"
        case "counts":
            return ("In attention, a token now counts once for every patch that it represents." if b.counts else
                    "In attention, every token counts once again.") + moved
        case "compare":
            return f"The second row of images is {b.compare} with the same K." if b.compare != settings.NOTHING else \
                "Only one method is shown."
    return {"undo": "One move undone.", "redo": "One move redone.",
            "reset": "All controls are back at their first values."}[name] + f" K = {row}."


def _cost_change(old: Run, new: Run, setting: Setting) -> str:
    points = round(100 * new.share, 1) - round(100 * old.share, 1)          # of the numbers as shown
    if setting.lock and is_near(setting.macs(setting.ks), setting.target):
        return f"The MACs are {new.share:.1%}, locked at {percent(setting.target)}."
    if abs(points) < 0.05:
        return f"The MACs stay at {new.share:.1%}."
    return (f"{abs(points):.1f} points {'more' if points > 0 else 'fewer'} MACs: {old.share:.1%} became "
            f"{new.share:.1%}, {new.share_without:.1%} without the clustering.")


def _error_change(before: View, now: View) -> str:
    """The block whose error changed most, and why."""
    old, new = before.runs[0].error, now.runs[0].error
    gap = np.subtract(new, old)
    b = int(np.argmax(np.abs(gap)))
    if abs(gap[b]) < 0.005:
        return "No error changes by as much as 0.01." if np.any(gap) else "The errors stay the same."
    was, cut = ((N, *v.ks)[b:b + 2] for v in (before, now))
    if was != cut:
        why = f"it turned {was[0]} tokens into {was[1]}, now {cut[0]} into {cut[1]}"
    elif before.runs[0].how != now.runs[0].how:
        why = "the same number of tokens, but chosen or averaged in another way"
    elif before.ks != now.ks:
        why = "the same number of tokens, but other tokens come in"
    else:
        why = "the same number of tokens, but attention has changed them"
    return (f"The error after block {b + 1} {'rose' if gap[b] > 0 else 'fell'} from {old[b]:.2f} to {new[b]:.2f}: "
            f"{why}.")


def _class(v: View, old: np.ndarray) -> str:
    """The class now, compared with that of the plain model and of the probabilities `old`."""
    new = v.runs[0].after
    plain, was, now = (int(p.argmax()) for p in (v.before, old, new))
    if was != now:
        back = " again, as in the plain model" if now == plain else ""
        return f"The class changes from *{spoken(was)}* to *{spoken(now)}* ({new[now]:.0%}){back}."
    stays = "stays" if now == plain else f"is still not *{spoken(plain)}* but"
    return f"The class {stays} *{spoken(now)}* ({old[now]:.0%} before, {new[now]:.0%} now)."


def _remains(v: View) -> str:
    """What is left of the two pebbles."""
    if not v.known:
        return ""
    run = v.runs[0]
    holds = v.before.argmax() == run.after.argmax()
    gone = [f"Of the {REGIONS[r]}'s {v.patches[r]} tokens none is left after block {np.argmax(run.left[:, r] == 0)}"
            + (", yet the class holds." if holds else ", and it decides half of the class.")
            for r in (1, 2) if run.left[-1, r] == 0]
    if gone:
        return " ".join(gone)
    return (f"Of the {int(run.left[-1].sum())} tokens in the end {run.left[-1, 1]} are the large pebble's, which had "
            f"{v.patches[1]} of {N}, and {run.left[-1, 2]} the small one's, which had {v.patches[2]}.")


def _second(v: View) -> str:
    """The method it is compared with."""
    if len(v.runs) == 1:
        return f"({v.setting.method} compared with itself is one row.)" if v.setting.compare == v.setting.method else ""
    first, second = v.runs
    said = (f"Next to it, {second.method} costs {second.share:.1%} and loses {sum(second.error) / POOLING:.2f} of the "
            f"variance per pooling, {first.method} {sum(first.error) / POOLING:.2f}")
    return said + (f"; its class is *{spoken(int(second.after.argmax()))}* ({second.after.max():.0%})." if v.known
                   else ".")


def _unused(v: View) -> str:
    """Controls that change nothing here."""
    unused = [r.method for r in v.runs if r.how.init is None]
    return (f"({' and '.join(unused)} {'do' if len(unused) > 1 else 'does'} not cluster: Initialisation and Output "
            "change nothing there.)") if unused else ""


def _way(v: View, run: Run) -> str:
    how = run.how
    return ", ".join(filter(None, (run.method, how.init and f"{how.init} initialisation",
                                   how.output and f"output {how.output}", v.setting.counts and "carried counts")))
