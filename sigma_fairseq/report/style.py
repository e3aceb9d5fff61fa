"""How every figure looks: colours, lines, axes, legend, file."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)
from PIL import Image

#: Inches, of every figure.
WIDTH = 7.5
DOTS_PER_INCH = 140

# Okabe and Ito's, which people who are colour-blind can tell apart, without the yellow, which is
# too pale for a line on white. Seven colours and four dashes make 28 different pairs in turn.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (1.5, 1)), (0, (7, 1.5, 1.5, 1.5)))
REFERENCE: dict[str, Any] = {"color": "#555555", "linewidth": 1.2, "linestyle": (0, (1, 1.5))}
NOT_FINITE = "#d9d9d9"
_LEGEND_HANDLE = 0.75  # inches of a line in the legend and of the gaps around it


class Drawn(NamedTuple):
    """A figure that is in a file.

    Attributes:
        file: the PNG.
        title: a few words.
        caption: what one sees, and what to look for.
    """

    file: Path
    title: str
    caption: str


@contextmanager
def figure_style() -> Iterator[None]:
    """Font sizes and axes of all figures drawn within."""
    settings: Any = {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "legend.handlelength": 3.2,
        "lines.linewidth": 1.4,
    }
    with matplotlib.rc_context(settings):
        yield


def line_styles(number: int) -> list[dict[str, Any]]:
    """A colour and a dash for each of so many lines, different for up to 28."""
    pairs = zip(cycle(COLOURS), cycle(_DASHES), strict=False)
    return [{"color": colour, "linestyle": dash} for colour, dash in islice(pairs, number)]


def panels(
    titles: Sequence[str], columns: int, height: float, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of axes of this height in inches, row by row, each under its title."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(WIDTH, rows * height + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    for axes, title in zip_longest(grid.flat, titles):
        if title is None:
            axes.set_axis_off()
        else:
            axes.set_title(shorten(title, 38))
    for column in range(columns):
        lowest = [row for row in range(rows) if row * columns + column < len(titles)][-1]
        grid[lowest, column].set_xlabel("update")
        grid[lowest, column].tick_params(labelbottom=True)
    return figure, list(grid.flat[: len(titles)])


def count_updates(axes: Axes) -> None:
    """Marks the update axis in few, round, short numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def scale_to(axes: Axes, values: Iterable[np.ndarray]) -> None:
    """A logarithmic value axis if all is positive and spans more than a factor of 30."""
    everything = np.concatenate([np.ravel(array) for array in values])
    finite = everything[np.isfinite(everything)]
    if not len(finite) or finite.min() <= 0 or finite.max() < 30 * finite.min():
        return
    axes.set_yscale("log")
    steps = (1, 2, 5) if finite.max() < 300 * finite.min() else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def add_legend(figure: Figure, names: Sequence[str], styles: Sequence[dict[str, Any]]) -> None:
    """A legend above all axes, in as many columns as the longest name leaves room for.

    The figure grows by as much.
    """
    names = [shorten(name, 56) for name in names]
    size = matplotlib.rcParams["legend.fontsize"]
    widest = max(TextPath((0, 0), name, size=size).get_extents().width for name in names) / 72
    handles = [
        Line2D([], [], label=name, **style) for name, style in zip(names, styles, strict=True)
    ]
    columns = max(1, min(int(WIDTH / (widest + _LEGEND_HANDLE)), len(names)))
    rows = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * rows)
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def add_colour_bar(
    figure: Figure, colours: ScalarMappable, axes: Sequence[Axes], **settings: Any
) -> Colorbar:
    """A bar at the right of all axes, from the top down, 4.5 inches high at the most."""
    shrink = min(1, 4.5 / figure.get_figheight())
    return figure.colorbar(
        colours, ax=axes, pad=0.01, aspect=25, shrink=shrink, anchor=(0, 1), **settings
    )


def edges(centres: np.ndarray) -> np.ndarray:
    """Where the cells around these ascending numbers begin and end, (n,) → (n + 1,)."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    between = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - between[0]], between, [2 * centres[-1] - between[-1]]])


def shorten(text: str, most: int) -> str:
    """Leaves out the middle of what is longer than `most` characters, and sets no mathematics."""
    kept = (most - 1) // 2
    short = text if len(text) <= most else f"{text[:kept]}…{text[-kept:]}"
    return short.replace("$", r"\$")


def save(figure: Figure, file: Path, title: str, caption: str) -> Drawn:
    """Writes the PNG."""
    write_png(figure, file)
    return Drawn(file, title, caption)


def write_png(figure: Figure, file: Path) -> None:
    """With a palette of 256 colours, which takes a third of the room."""
    figure.set_dpi(DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
