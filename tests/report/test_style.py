"""Colours, axes and names."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from sigma_fairseq.report.style import (
    add_legend,
    edges,
    figure_style,
    line_styles,
    panels,
    scale_to,
    shorten,
)


def test_twelve_lines_are_all_different() -> None:
    assert len({str(style) for style in line_styles(28)}) == 28
    neighbours = line_styles(12)
    for one, other in pairwise(neighbours):
        assert one["color"] != other["color"] and one["linestyle"] != other["linestyle"]


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(
        weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
    )


def test_every_line_shows_on_white() -> None:
    for style in line_styles(7):
        assert 1.05 / (luminance(style["color"]) + 0.05) > 2


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1, 20], "linear"),
        ([0.1, 20], "log"),
        ([0, 20], "linear"),
        ([-1, 2000], "linear"),
        ([np.nan, 0.1, np.inf, 20], "log"),
        ([np.nan], "linear"),
    ],
)
def test_a_logarithmic_axis_only_where_it_can_be_one(values: list[float], scale: str) -> None:
    axes = Figure().subplots()
    scale_to(axes, [np.array(values)])
    assert axes.get_yscale() == scale


def test_cells_meet_half_way() -> None:
    np.testing.assert_array_equal(edges(np.array([10, 20, 40])), [5, 15, 30, 50])
    np.testing.assert_array_equal(edges(np.array([10])), [9.5, 10.5])


def test_long_names_keep_both_ends() -> None:
    assert shorten("post-LN", 7) == "post-LN"
    assert shorten("post-LN-seed1", 9) == "post…eed1"
    assert shorten("$x$", 9) == r"\$x\$"  # else a name is set as a formula, or is none and fails


@pytest.mark.parametrize("length", [3, 20, 45, 80])
def test_the_legend_of_twelve_runs_fits(length: int) -> None:
    with figure_style():
        figure, (axes,) = panels(["loss"], 1, 3.4)
        add_legend(figure, [f"{number:W>{length}}" for number in range(12)], line_styles(12))
        figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().x1 <= figure.bbox.x1
    assert legend.get_window_extent().y0 >= axes.get_window_extent().y1
    assert axes.get_window_extent().height > 100
