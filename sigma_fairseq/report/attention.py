"""Figures of attention: entropy a layer, and the bound of Theorem 3.1."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize

from sigma_fairseq.report.runs import ATTENTION_KINDS
from sigma_fairseq.report.series import (
    Sampled,
    attentions_of,
    least_of_heads,
    mean_of_heads,
)
from sigma_fairseq.report.style import (
    NOT_FINITE,
    REFERENCE,
    Drawn,
    add_colour_bar,
    add_legend,
    count_updates,
    edges,
    panels,
    save,
)

#: A bound below this, in nats, cannot be told from 0 in a figure.
NO_BOUND = 0.01

ENTROPY = "entropy (nats)"
_UNIFORM = "uniform attention"
_LOWEST: dict[str, Any] = {"color": "#D55E00", "linestyle": (0, (6, 1.5)), "linewidth": 1.6}
_MEAN: dict[str, Any] = {"color": "#000000", "linestyle": "-", "linewidth": 1.8}
# The pale end of the map is left out: thin lines in it vanish on white.
_BY_DEPTH = ListedColormap(matplotlib.colormaps["cividis"](np.linspace(0, 0.88, 256)))


def draw_entropy(runs: Sequence[Sampled], out: Path) -> Iterator[Drawn]:
    """The runs on the same axes; then, a kind of attention after the other, each run's layers."""
    kinds = kinds_of(runs)
    if not kinds:
        return
    yield _draw_comparison(runs, kinds, out / "entropy.png")
    top = max(float(np.nanmax(sampled.records["entropy_max"], initial=1e-3)) for sampled in runs)
    for kind in kinds:
        with_kind = [sampled for sampled in runs if attentions_of(sampled.run, kind)]
        file = f"entropy_{kind.replace(' ', '_').replace('-', '_')}"
        yield _draw_maps(with_kind, kind, out / f"{file}_map.png")
        yield _draw_layers(with_kind, kind, top, out / f"{file}_layers.png")


def kinds_of(runs: Sequence[Sampled]) -> list[str]:
    """Kinds of attention that any of the runs has."""
    return [kind for kind in ATTENTION_KINDS if any(attentions_of(one.run, kind) for one in runs)]


def draw_bound(runs: Sequence[Sampled], out: Path) -> Iterator[Drawn]:
    """The least entropy of a query beside what the spectral norms guarantee."""
    kinds = kinds_of(runs)
    if not kinds:
        return
    rows = {"entropy": "mean query", "entropy_min": "least query", "entropy_bound": "bound"}
    titles = [f"{kind}: {what}" for what in rows.values() for kind in kinds]
    figure, axes = panels(titles, len(kinds), 1.7, sharex=True, sharey=True)
    figure.supylabel(ENTROPY, fontsize=9)
    for row, field in enumerate(rows):
        for kind, place in zip(kinds, axes[row * len(kinds) :], strict=False):
            for sampled in runs:
                lowest_heads = _by_layer(sampled, kind, field, least_of_heads)
                if lowest_heads.size:
                    place.plot(sampled.updates, lowest_heads.mean(axis=1), **sampled.style)
    for place in axes:
        place.set_ylim(_below_zero(place.get_ylim()[1]))
        count_updates(place)
    add_legend(figure, [one.name for one in runs], [one.style for one in runs])
    caption = (
        "Entropy of a layer's lowest head, mean over the layers: of its queries' mean, of the "
        "least of those that see several keys, and what Theorem 3.1 guarantees at the present "
        "spectral norms, mean over the queries. The first curve cannot fall below the last. A "
        "bound near 0 permits collapse; it does not say that there is one."
    )
    empty = [one.name for one in runs if _has_no_bound(one)]
    if empty:
        caption += (
            f" The bound of {', '.join(empty)} stays below {NO_BOUND} nats in every head: the flat "
            "line at 0 is the figure, not a gap in it."
        )
    yield save(figure, out / "bound.png", "Entropy and its lower bound", caption)


def _has_no_bound(sampled: Sampled) -> bool:
    bound = sampled.records["entropy_bound"]
    return bool(bound.size and np.nanmax(bound, initial=0) < NO_BOUND)


def _by_layer(
    sampled: Sampled, kind: str, field: str, of_heads: Callable[..., np.ndarray]
) -> np.ndarray:
    """(N, layers), the layers in order."""
    chosen = attentions_of(sampled.run, kind)
    attentions = [sampled.run.attentions[index] for index in chosen]
    return of_heads(sampled.records[field][:, chosen], attentions)


def _draw_comparison(runs: Sequence[Sampled], kinds: Sequence[str], file: Path) -> Drawn:
    titles = [f"{kind}: {what}" for what in ("mean of layers", "lowest layer") for kind in kinds]
    figure, axes = panels(titles, len(kinds), 2.1, sharex=True, sharey=True)
    figure.supylabel(ENTROPY, fontsize=9)
    of_layers: tuple[Callable[..., np.ndarray], ...] = (np.mean, np.min)
    for row, figure_of in enumerate(of_layers):
        for kind, place in zip(kinds, axes[row * len(kinds) :], strict=False):
            for sampled in runs:
                layers = _by_layer(sampled, kind, "entropy", mean_of_heads)
                if layers.size:
                    _add_uniform(place, sampled, kind)
                    place.plot(sampled.updates, figure_of(layers, axis=1), **sampled.style)
    for place in axes:
        place.set_ylim(_below_zero(place.get_ylim()[1]))
        count_updates(place)
    names, styles = [one.name for one in runs], [one.style for one in runs]
    add_legend(figure, [*names, _UNIFORM], [*styles, REFERENCE])
    caption = (
        "Entropy of attention, mean over a layer's heads and queries: at the dotted line a query "
        "looks at all keys alike, at 0 at a single one. Look for a lowest layer that sinks to 0 "
        "and stays there: that is collapse."
    )
    return save(figure, file, "Attention entropy, the runs side by side", caption)


def _draw_maps(runs: Sequence[Sampled], kind: str, file: Path) -> Drawn:
    figure, axes = panels([one.name for one in runs], 2, 2.0, sharex=True)
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=NOT_FINITE)
    for sampled, place in zip(runs, axes, strict=True):
        layers = _share_of_uniform(sampled, kind)
        mesh = place.pcolormesh(
            edges(sampled.updates),
            np.arange(layers.shape[1] + 1) - 0.5,
            np.ma.masked_invalid(layers.T),
            cmap=colours,
            norm=Normalize(0, 1),
        )
        _label_layers(place, layers.shape[1])
    add_colour_bar(figure, mesh, axes, label="entropy / uniform attention's")
    caption = (
        f"Each row is the {kind} attention of one layer, layer 0 next to the input. The colour is "
        "its entropy as a share of uniform attention's, which changes with the sentences' length. "
        "Yellow, 1: a query looks at all keys alike. Dark, 0: it looks at a single one. Collapse "
        "is a layer that goes dark. The colours mean the same in all maps of this page. Grey: not "
        "finite. White: no record."
    )
    return save(figure, file, f"Entropy of {kind} attention, layer by layer", caption)


def _share_of_uniform(sampled: Sampled, kind: str) -> np.ndarray:
    """(N, layers), NaN where a query sees a single key, or a figure is not finite."""
    uniform = sampled.records["entropy_max"][:, attentions_of(sampled.run, kind)]
    entropy = _by_layer(sampled, kind, "entropy", mean_of_heads)
    return np.divide(entropy, uniform, out=np.full_like(entropy, np.nan), where=uniform > 0)


def _draw_layers(runs: Sequence[Sampled], kind: str, top: float, file: Path) -> Drawn:
    figure, axes = panels([one.name for one in runs], 2, 2.0, sharex=True, sharey=True)
    for sampled, place in zip(runs, axes, strict=True):
        layers = _by_layer(sampled, kind, "entropy", mean_of_heads)
        lines = [np.column_stack([sampled.updates, layer]) for layer in layers.T]
        fan = LineCollection(lines, cmap=_BY_DEPTH, linewidths=0.7, alpha=0.8)
        fan.set_array(np.linspace(0, 1, len(lines)))
        fan.set_clim(0, 1)
        place.add_collection(fan)
        _add_uniform(place, sampled, kind)
        place.plot(sampled.updates, layers.mean(axis=1), **_MEAN)
        place.plot(sampled.updates, layers.min(axis=1), **_LOWEST)
        place.set_ylim(_below_zero(1.05 * top))
        count_updates(place)
    figure.supylabel(ENTROPY, fontsize=9)
    bar = add_colour_bar(figure, fan, axes, ticks=[0, 1])
    bar.ax.set_yticklabels(["first\nlayer", "last\nlayer"])
    add_legend(figure, ["mean", "lowest layer", _UNIFORM], [_MEAN, _LOWEST, REFERENCE])
    caption = (
        f"The same {kind} attentions as lines, one a layer, from dark blue at the input to yellow "
        "at the output. A healthy run's fan stays off the bottom; collapse is a line that drops "
        "to 0."
    )
    return save(figure, file, f"Entropy of {kind} attention as curves", caption)


def _add_uniform(place: Axes, sampled: Sampled, kind: str) -> None:
    chosen = attentions_of(sampled.run, kind)
    uniform = sampled.records["entropy_max"][:, chosen].mean(axis=1)
    place.plot(sampled.updates, uniform, **REFERENCE)


def _label_layers(place: Axes, layers: int) -> None:
    place.grid(False)
    place.set_ylabel("layer")
    place.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
    count_updates(place)


def _below_zero(top: float) -> tuple[float, float]:
    """Limits with room for a line at 0, which would else be hidden by the axis."""
    return -0.04 * top, top
