"""What stands behind the seven verbs: predictions, exercises, figures with words, explorers."""

import gc
import subprocess
import sys
import weakref

import ipywidgets.widgets as widgets
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from tokenpool.lab import start
from tokenpool.lab.k_explorer import view
from tokenpool.lab.kit.cards import Card, inline
from tokenpool.lab.kit.exercises import Exercise, Wrong, ensure, exercise, expect
from tokenpool.lab.kit.figure import details, show, styled
from tokenpool.lab.kit.predictions import Prediction, PredictionCard
from tokenpool.lab.kit.session import LESSONS, Lab
from tokenpool.lab.widgets.controls import Choice, Number, Switch
from tokenpool.lab.widgets.explorer import Explorer

# ---- set-up ----

def test_the_set_up_line_says_what_runs(capsys):
    lab = start("03")
    said = capsys.readouterr().out
    assert said.startswith("Notebook 03, tokenpool ")
    assert f"torch {torch.__version__.split('+')[0]}" in said
    assert "seed 0" in said
    assert lab.small == (lab.device == "cpu")


def test_an_unknown_notebook_exercise_or_prediction_is_told():
    with pytest.raises(ValueError, match="Unknown notebook '3'"):
        start("3")
    lab = Lab("03")
    with pytest.raises(ValueError, match=r"Unknown exercise 'z'.*notebook 03"):
        lab.check("z", None)
    with pytest.raises(ValueError, match="Unknown prediction 'z'"):
        lab.reveal("z", 1)


def test_the_tokens_of_a_block_are_what_a_trace_says():
    lab = Lab("03")
    x, pixels, labels, regions = lab.images(2)
    assert (x.shape, pixels.shape, labels.shape, regions.shape) == ((2, 3, 64, 64), (2, 3, 64, 64), (2,), (2, 64))
    assert set(regions.ravel()) == {0, 1, 2}
    tokens, score = lab.tokens(x, 2)
    held = lab.vit.forward_intermediates(x, indices=[2], output_fmt="NLC", norm=False, intermediates_only=True)[0]
    assert torch.allclose(tokens, held, atol=1e-5)
    assert score.shape == (2, 64)
    assert (score >= 0).all()
    with pytest.raises(ValueError, match="Block 6 does not exist"):
        lab.tokens(x, 6)


def test_importing_the_lab_loads_no_lesson():
    code = "import sys, tokenpool.lab; print([m for m in sys.modules if 'lab.lessons.' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("number", LESSONS)
def test_every_lesson_has_what_its_notebook_needs(number):
    lab = Lab(number)
    assert len(lab.lesson.PREDICTIONS) >= 1
    assert len({p.id for p in lab.lesson.PREDICTIONS}) == len(lab.lesson.PREDICTIONS)
    explorer = lab.explore()
    assert explorer.error is None
    assert len(explorer.words) > 40
    assert explorer.table is not None


# ---- exercises ----

@exercise("x", minutes=3, level=1, hints=("Add.", "Use +."))
def add_one(a):
    return a + 1


@add_one.check_by
def _(answer):
    expect(answer(1), 2, "One more than 1.")
    ensure(answer(5) == 6, "Five plus one.")


def stub(a):
    """Words."""
    ...


def half_written(a):
    b = ...
    return b + a


def no_return(a):
    a + 1


def stops(a):
    b = a
    return b.shape


@pytest.mark.parametrize(("answer", "state", "words"), [
    (stub, "open", "Replace the `...` in `add_one`"), (lambda a: ..., "open", "lab.hint"), (..., "open", "Replace"),
    (half_written, "open", "Replace"), (lambda a: a + 1, "right", "All cases agree"),
    (lambda a: a, "wrong", "One more than 1. Expected 2, got 1."), (lambda a: 2, "wrong", "Five plus one."),
    (no_return, "wrong", "Is there a `return`?"), (3, "wrong", "should be a function; got 3"),
    (stops, "wrong", "stops with AttributeError"), (stops, "wrong", "line 3 of the function"),
    (lambda: 1, "wrong", "TypeError"), (lambda a: "two", "wrong", "'two'"),
    (lambda a: torch.tensor([2.0, 3.0]), "wrong", "shape (2,), expected ()"),
    (lambda a: float("nan"), "wrong", "NaN"),
], ids=range(15))
def test_the_three_outcomes(answer, state, words):
    card = add_one.check(answer)
    assert card.state == state
    assert words in card.words


def test_a_solution_is_shown_as_text_and_never_as_a_decorated_function():
    assert add_one.source() == "def add_one(a):\n    return a + 1\n"
    shown = add_one.show_solution()
    assert "```python\ndef add_one" in shown._repr_markdown_()


def test_hints_get_clearer():
    lab = Lab("03")
    first, second = lab.hint("a"), lab.hint("a")
    assert first.words.startswith("Hint 1 of 3")
    assert second.words.startswith("Hint 2 of 3")
    lab.hint("a")
    assert lab.hint("a").words.startswith("Hint 3 of 3")


def test_an_exercise_without_a_check_is_a_mistake_of_ours():
    with pytest.raises(AssertionError):
        Exercise("q", 1, 1, (), lambda: 1).check(lambda: 1)


@pytest.mark.parametrize(("got", "wanted"), [(torch.tensor(2.0), 2), ([1, 2], [1.0, 2.0]), (True, 1), ("a", "a")])
def test_what_equals(got, wanted):
    expect(got, wanted, "")


@pytest.mark.parametrize(("got", "wanted"), [(2.1, 2), ([1, 2], [2, 1]), ("a", "b"), (None, 1), ({}, 1), (1, "a")])
def test_what_does_not_equal(got, wanted):
    with pytest.raises(Wrong):
        expect(got, wanted, "")


# ---- cards ----

def test_a_card_tells_its_state_in_words_and_escapes_the_rest():
    card = Card("wrong", "`a < b` is *not* <script>")
    assert repr(card).startswith("✗ Not yet.")
    html = card._repr_html_()
    assert "<code>a &lt; b</code>" in html
    assert "<em>not</em>" in html
    assert "<script>" not in html
    assert 'role="status"' in html


def test_products_are_no_emphasis():
    assert inline("2 * 3 * 4") == "2 * 3 * 4"


# ---- predictions ----

QUESTION = Prediction("a", "More or less?", ("more", "less"), answer=lambda value: 0 if value > 0 else 1,
                      why={1: "It looks so."}, tell=lambda value: f"{value} more")


def test_a_commitment_is_kept_and_answered_by_the_evidence():
    answers = {}
    card = PredictionCard(QUESTION, answers)
    card.button.click()
    assert answers == {}
    assert "Nothing is chosen yet" in card.status.value
    card.choice.index = 1
    card.button.click()
    assert answers == {"a": 1}
    assert card.button.disabled
    assert card.choice.disabled
    told = QUESTION.reveal(3, answers["a"])
    assert told.state == "wrong"
    assert told.words == "You said: *less*. Measured: 3 more. So: *more*. It looks so."
    assert QUESTION.reveal(-1, 1).state == "right"


def test_without_a_commitment_the_answer_comes_all_the_same():
    told = QUESTION.reveal(3, None)
    assert told.state == "note"
    assert "You had not committed" in told.words
    assert "Tempting: *less*" in told.words


def test_evidence_that_fits_no_option_is_an_error():
    odd = Prediction("b", "?", ("x",), answer=lambda value: 5)
    with pytest.raises(ValueError, match="selects option 5"):
        odd.reveal(1, None)


def test_a_prediction_reads_without_a_kernel():
    bundle = PredictionCard(QUESTION, {})._repr_mimebundle_()
    assert "<li>more</li>" in bundle["text/html"]
    assert "model_id" in bundle["application/vnd.jupyter.widget-view+json"]


# ---- figures ----

def test_a_figure_needs_words_and_a_title():
    with pytest.raises(ValueError, match="needs words"):
        show(go.Figure(layout_title="t"), see=" ")
    with pytest.raises(ValueError, match="needs a title"):
        show(go.Figure(), see="Something.")


def test_legends_get_the_room_they_need():
    few = styled(go.Figure([go.Scatter(y=[1], name="a"), go.Scatter(y=[2], name="b")]))
    many = styled(go.Figure([go.Scatter(y=[1], name="a rather long name") for _ in range(9)]))
    assert many.layout.margin.b > few.layout.margin.b
    assert styled(go.Figure(go.Scatter(y=[1]))).layout.margin.b < few.layout.margin.b


def test_a_table_is_html_that_needs_no_kernel():
    html = details(pd.DataFrame({"a<b": [0.123456, 2.0], "name": ["x", "y"]}))
    assert html.startswith("<details")
    assert "a&lt;b" in html
    assert "0.1235" in html
    with pytest.raises(ValueError, match="too long for a caption"):
        details(pd.DataFrame({"a": range(100)}))


# ---- explorers ----

def sums(a, b, negative):
    if a == 13:
        raise ValueError("13 is not allowed.")
    return (-1 if negative else 1) * (a + {"one": 1, "two": 2}[b])


def toy():
    return Explorer({"a": Number("First", 3, 0, 20), "b": Choice("Second", ("one", "two")),
                     "negative": Switch("Negative")}, sums,
                    lambda s: go.Figure(go.Bar(x=["sum"], y=[s])), lambda s: f"The sum is {s}.",
                    lambda s: pd.DataFrame({"sum": [s]}), measure=lambda s: ("sum", s, "{:d}") if s < 19 else None)


def test_an_explorer_follows_its_controls():
    explorer = toy()
    assert explorer.words == "The sum is 4."
    explorer.set(a=5, b="two", negative=True)
    assert explorer.words == "You changed *Negative* from off to on: the sum fell from 7 to -7. The sum is -7."
    assert explorer.figure.data[0].y == (-7,)
    assert "-7" in explorer._numbers.value
    assert 'role="status"' in explorer._status.value


def test_an_error_in_a_callback_is_told_where_the_person_looks():
    explorer = toy()
    explorer.set(a=13)
    assert isinstance(explorer.error, ValueError)
    assert "13 is not allowed." in explorer.words
    assert explorer.figure.data[0].y == (4,)
    explorer.set(a=2)
    assert explorer.error is None
    assert explorer.words == "You changed *First* from 13 to 2: the sum fell from 4 to 3. The sum is 3."


def broken(*_, **__):
    raise RuntimeError("planted")


@pytest.mark.parametrize("part", ["compute", "draw", "say", "table", "measure"])
@pytest.mark.parametrize("number", LESSONS)
def test_an_error_in_any_part_of_any_explorer_is_told(number, part, monkeypatch):
    explorer = Lab(number).explore()
    if (number, part) == ("05", "measure"):
        return                                  # it has its own words for what changed
    with monkeypatch.context() as patch:
        patch.setattr(explorer, part, broken)
        if (number, part) == ("05", "say"):
            patch.setattr(view, "move_words", broken)
        move(explorer, next(iter(explorer.controls)))
        assert "planted" in str(explorer.error)
        assert explorer.words.startswith("This setting does not work: planted")
    move(explorer, list(explorer.controls)[-1])
    assert explorer.error is None
    assert "planted" not in explorer.words


def move(explorer, name):
    """One control to its next value."""
    spec, before = explorer.controls[name], explorer.values()[name]
    if isinstance(spec, Number):
        after = before + spec.step if before + spec.step <= spec.high else before - spec.step
    elif isinstance(spec, Choice):
        values = list(spec.options.values())
        after = values[(values.index(before) + 1) % len(values)]
    else:
        after = not before
    explorer.set(**{name: after})
    return spec.spoken(before), spec.spoken(after)


@pytest.mark.parametrize("number", [n for n in LESSONS if n != "05"])         # 05: test_k_explorer.py
def test_every_move_says_what_changed(number):
    explorer = Lab(number).explore()
    told = 0
    for name, spec in explorer.controls.items():
        before, after = move(explorer, name)
        assert explorer.error is None, explorer.words
        assert explorer.words.startswith(f"You changed *{spec.label}* from {before} to {after}")
        told += any(verb in explorer.words for verb in (" rose from ", " fell from ", " stays at "))
    assert told >= len(explorer.controls) - 2      # of another image or another stage there may be nothing to compare


def test_what_became_of_a_number():
    explorer = toy()
    assert explorer.set(a=4).words.startswith("You changed *First* from 3 to 4: the sum rose from 4 to 5. ")
    assert explorer.set(negative=True, a=5, b="one").words.startswith("You changed *First* from 4 to 5: the sum fell ")
    flat = Explorer({"a": Number("A", 1, 0, 9)}, lambda a: a, lambda a: go.Figure(), lambda a: "Words.",
                    measure=lambda a: ("half", a // 2, "{:d}"))
    assert flat.set(a=0).words == "You changed *A* from 1 to 0: the half stays at 0. Words."
    assert toy().set(a=18).words == "You changed *First* from 3 to 18. The sum is 19."         # nothing to compare


def test_an_explorer_reads_without_a_kernel():
    bundle = toy()._repr_mimebundle_()
    assert bundle["application/vnd.plotly.v1+json"]["data"][0]["y"] == [4] or \
        list(bundle["application/vnd.plotly.v1+json"]["data"][0]["y"]) == [4]
    assert "The sum is 4." in bundle["text/html"]
    assert "First, Second, Negative" in bundle["text/html"]


def test_controls_have_names():
    explorer = toy()
    slider = explorer.controls["a"]
    assert isinstance(slider, Number)
    assert slider.label == "First"
    assert explorer.controls["b"].label == "Second"
    with pytest.raises(ValueError, match="No control called 'c'"):
        explorer.set(c=1)


def test_a_control_refuses_what_it_cannot_show():
    explorer = toy()
    with pytest.raises(ValueError, match=r"First: got 21\. Use 0 to 20\."):
        explorer.set(a=21)
    with pytest.raises(ValueError, match=r"'three' is not a choice\. Use one of 'one', 'two'"):
        explorer.set(b="three")
    assert explorer.words == "The sum is 4."
    assert explorer.error is None


def test_a_choice_made_in_the_browser_arrives_as_its_value():
    few_or_many = Choice("K", {"few": 2, "many": 9})
    explorer = Explorer({"k": few_or_many}, lambda k: k, lambda k: go.Figure(), lambda k: f"{k}.")
    assert explorer.words == "2."
    explorer.controls["k"].index = 1         # what the front end sends
    assert explorer.words == "You changed *K* from few to many. 9."
    assert explorer.values() == {"k": 9}


@pytest.mark.parametrize("number", LESSONS)
def test_a_cell_that_is_run_again_leaves_nothing_behind(number):
    """No widget in the kernel's list, and no callback that would keep the explorer in memory."""
    alive = widgets.widget._instances
    lab = Lab(number)
    explorer = lab.explore()
    gone = [weakref.ref(part) for part in (explorer, explorer.figure, *explorer.controls.values())]
    del explorer
    lab.explore()
    before = len(alive)
    for _ in range(3):
        move(lab.explore(), next(iter(lab.explore().controls)))
    assert len(alive) == before
    gc.collect()
    assert [part() for part in gone] == [None] * len(gone)
