"""Final loss against learning rate: what is drawn where."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sigma_fairseq.report import learning_rate
from sigma_fairseq.report.learning_rate import draw_learning_rates

START = 5.0
POINTS = [
    ("post-LN", 1e-3, 1, 2.0),
    ("post-LN", 1e-4, 1, 1.0),
    ("post-LN", 1e-4, 2, 3.0),
    ("post-LN", 1e-4, 3, 1.5),
    ("post-LN", 1e-3, 2, math.nan),
    ("post-LN", 1e-2, 1, math.inf),
    ("σReparam", 1e-2, 1, 0.1),
    ("σReparam", 1e-3, 1, 0.2),
    ("DeepNorm", 1e-2, 1, 7.0),
]


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Figure:
    drawn: list[Figure] = []
    monkeypatch.setattr(learning_rate, "write_png", lambda figure, out: drawn.append(figure))
    draw_learning_rates(POINTS, START, tmp_path / "unused.png")
    return drawn[0]


def test_a_line_is_the_median_over_seeds_diverged_ones_at_the_start(figure: Figure) -> None:
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_linestyle() != "None"]
    reference, *methods = [
        (list(line.get_xdata()), np.asarray(line.get_ydata()).tolist()) for line in lines
    ]
    assert reference[1] == [START, START]
    assert methods == [
        ([1e-4, 1e-3, 1e-2], [1.5, 3.5, START]),
        ([1e-3, 1e-2], [0.2, 0.1]),
        ([1e-2], [START]),
    ]
    assert axes.get_xscale() == "log"


def test_divergence_is_an_open_marker_at_the_start(figure: Figure) -> None:
    (axes,) = figure.axes
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    where = [(line.get_xdata()[0], line.get_ydata()[0], line.get_marker()) for line in hollow]
    assert [point[:2] for point in where] == [(1e-3, START), (1e-2, START), (1e-2, START)]
    assert where[1][2] != where[2][2]
    heights = [line.get_transform().transform((1e-2, START))[1] for line in hollow[1:]]
    assert heights[1] - heights[0] > 5


def test_the_legend_names_all(figure: Figure) -> None:
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["post-LN", "σReparam", "DeepNorm", "loss at the start", "a seed diverged"]


def test_the_file_is_a_picture(tmp_path: Path) -> None:
    ten = [(f"method {n}", rate, 1, n + 1e3 * rate) for n in range(10) for rate in (1e-4, 1e-3)]
    draw_learning_rates(ten, 12.0, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
