"""Charts of points: where they stand, what they say, and what is left out."""

from __future__ import annotations

from math import nan

import pytest

from fedplatform.experiments.report.plot import Plot, Series, draw, path_through, style_of, ticks


def drawn(*series: Series, names: tuple[str, ...] = ()) -> Plot:
    return draw("Height", series, x_label="place", y_label="height", caption="How high", names=names)


def test_points_stand_where_the_ticks_say() -> None:
    plot = drawn(Series("hill", "s-0", [(0, 0.5, "low"), (5, 1.0, "half way"), (10, 0.5, "down")], "line"))
    (curve,) = plot.curves
    places, heights = {text: x for x, text in plot.x_ticks}, {text: y for y, text in plot.y_ticks}
    assert [(x, y) for x, y, _ in curve.dots] == [
        (places["0"], heights["0.5"]),
        (pytest.approx((places["0"] + places["10"]) / 2), heights["1"]),
        (places["10"], heights["0.5"]),
    ]
    assert [text for *_, text in curve.dots] == ["low", "half way", "down"]
    assert curve.path == path_through(curve.dots)
    assert plot.summary == "How high"


def test_what_is_no_number_is_left_out_and_what_is_not_joined_has_no_line() -> None:
    (curve,) = drawn(Series("hill", "s-0", [(0, 1.0, "there"), (1, nan, "nowhere"), (2, 2.0, "there, too")])).curves
    assert [text for *_, text in curve.dots] == ["there", "there, too"]
    assert curve.path == ""


def test_steps_go_along_and_then_up_and_show_no_dots() -> None:
    (curve,) = drawn(Series("best", "s-1", [(0, 0.0, ""), (1, 1.0, "")], "step")).curves
    assert curve.dots == ()
    assert curve.path == "M44 198H320V12"


def test_names_stand_below_their_points_and_slant_where_they_are_long() -> None:
    points = [(0, 1.0, ""), (1, 2.0, ""), (2, 3.0, "")]
    plot = drawn(Series("", "s-0", points), names=("mean", "median", "trust"))
    assert [x for x, _ in plot.x_ticks] == [x for x, *_ in plot.curves[0].dots]
    assert not plot.slants
    assert drawn(Series("", "s-0", points), names=("after the first turn of the duel", "median", "trust")).slants


@pytest.mark.parametrize("value", [0.0, 0.7, 3.0, -2.5])
def test_a_single_value_has_an_axis_too(value: float) -> None:
    marks = ticks(value, value)
    assert marks[0] < value < marks[-1]
    (curve,) = drawn(Series("", "s-0", [(value, value, "")])).curves
    assert len(curve.dots) == 1


def test_sixteen_curves_look_different() -> None:
    assert len({style_of(number) for number in range(16)}) == 16
