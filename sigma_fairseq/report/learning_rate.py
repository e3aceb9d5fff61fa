"""Final loss against learning rate: how wide a range of rates a method trains in."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from matplotlib.transforms import offset_copy

from sigma_fairseq.report.style import (
    REFERENCE,
    WIDTH,
    add_legend,
    figure_style,
    line_styles,
    scale_to,
    write_png,
)

_MARKERS = "osD^vPX<>*"
_MARKER_POINTS = 6


def draw_learning_rates(
    points: Sequence[tuple[str, float, int, float]],
    start_loss: float,
    out: Path,
) -> None:
    """Draws a line a method, through the median of its seeds.

    The band around it is the range of the seeds that trained.

    Args:
        points: (method, learning rate, seed, final loss in bits a target token). A loss that is
            not finite, or not below `start_loss`, is of a training that diverged: it counts as
            `start_loss` and is marked there by an open marker, stacked where methods meet.
        start_loss: the loss before training, in bits a target token.
        out: the PNG to write.
    """
    losses: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for method, rate, _, loss in points:
        losses[method][rate].append(loss if loss < start_loss else start_loss)
    with figure_style():
        write_png(_figure(losses, start_loss, _styles(losses)), out)


def _styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    names = list(methods)
    styles = zip(names, line_styles(len(names)), cycle(_MARKERS), strict=False)
    return {
        name: {**style, "marker": marker, "markersize": _MARKER_POINTS}
        for name, style, marker in styles
    }


def _figure(
    losses: Mapping[str, Mapping[float, list[float]]],
    start_loss: float,
    styles: Mapping[str, dict[str, Any]],
) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(start_loss, **REFERENCE)
    for method, by_rate in losses.items():
        _draw_method(axes, by_rate, start_loss, styles[method])
    _mark_diverged(figure, axes, losses, start_loss, styles)
    rates = sorted({rate for by_rate in losses.values() for rate in by_rate})
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("learning rate")
    scale_to(axes, [np.array(seeds) for by_rate in losses.values() for seeds in by_rate.values()])
    axes.set_ylabel("final loss (bits a target token)")
    hollow = {"color": "#777777", "linestyle": "", "marker": "o", "markerfacecolor": "white"}
    names = [*styles, "loss at the start", "a seed diverged"]
    add_legend(figure, names, [*styles.values(), REFERENCE, hollow])
    return figure


def _draw_method(
    axes: Axes, by_rate: Mapping[float, list[float]], start_loss: float, style: dict[str, Any]
) -> None:
    rates = sorted(by_rate)
    middle = np.array([np.median(by_rate[rate]) for rate in rates])
    trained = [[loss for loss in by_rate[rate] if loss < start_loss] for rate in rates]
    least = [min(seeds, default=np.nan) for seeds in trained]
    greatest = [max(seeds, default=np.nan) for seeds in trained]
    axes.plot(rates, middle, markevery=(middle < start_loss).tolist(), **style)
    axes.fill_between(rates, least, greatest, color=style["color"], alpha=0.12, lw=0)


def _mark_diverged(
    figure: Figure,
    axes: Axes,
    losses: Mapping[str, Mapping[float, list[float]]],
    start_loss: float,
    styles: Mapping[str, dict[str, Any]],
) -> None:
    stacked: Counter[float] = Counter()
    for method, by_rate in losses.items():
        for rate in (rate for rate, seeds in by_rate.items() if max(seeds) == start_loss):
            height = stacked[rate] * (_MARKER_POINTS + 2)
            place = offset_copy(axes.transData, figure, y=height, units="points")
            hollow = {**styles[method], "linestyle": "", "markerfacecolor": "white"}
            axes.plot(rate, start_loss, transform=place, clip_on=False, zorder=3, **hollow)
            stacked[rate] += 1
