"""Figures of weights: spectral norms, γ, gradients, updates, embeddings; and the loss."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from sigma_fairseq.report.attention import kinds_of
from sigma_fairseq.report.runs import MATRIX_KINDS
from sigma_fairseq.report.series import (
    Sampled,
    all_heads,
    attentions_of,
    gradient_norms,
    in_bins,
    middle_and_range,
)
from sigma_fairseq.report.style import (
    NOT_FINITE,
    Drawn,
    add_colour_bar,
    add_legend,
    count_updates,
    edges,
    panels,
    save,
    scale_to,
)

_MOST_LOSSES = 400
#: Runs of which the range over the layers is drawn too; more would hide each other.
_MOST_BANDS = 4

# Title → a run's figures, (N, how many of them).
Panels = Mapping[str, Sequence[np.ndarray]]


def draw_loss(runs: Sequence[Sampled], out: Path) -> Iterator[Drawn]:
    """Training loss of all runs, from all records."""
    figure, (axes,) = panels([""], 1, 3.4)
    drawn = []
    for sampled in runs:
        updates, losses = sampled.run.updates, sampled.run.losses
        last, mean, least, greatest = in_bins(updates, losses, _MOST_LOSSES)
        axes.plot(last, mean, **sampled.style)
        axes.fill_between(last, least, greatest, color=sampled.style["color"], alpha=0.2, lw=0)
        drawn.append(mean)
        _mark_not_finite(axes, sampled)
    scale_to(axes, drawn)
    by_sentence = [sampled.run.options.get("optimization.sentence_avg") for sampled in runs]
    unit = "sentence" if all(by_sentence) else "target token"
    axes.set_ylabel(f"loss (bits a {unit})")
    count_updates(axes)
    add_legend(figure, [one.name for one in runs], [one.style for one in runs])
    caption = (
        "Mean loss since the record before. Of a long run a line is the mean of several records "
        "and the shade around it their range, so that a short spike still shows. A cross on the "
        "upper edge marks where a loss stops being finite."
    )
    yield save(figure, out / "loss.png", "Training loss", caption)


def _mark_not_finite(axes: Axes, sampled: Sampled) -> None:
    broken = ~np.isfinite(sampled.run.losses)
    starts = sampled.run.updates[broken & ~np.append(False, broken[:-1])]
    if not len(starts):
        return
    axes.plot(
        starts,
        np.ones(len(starts)),
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        linestyle="",
        marker="X",
        markersize=9,
        color=sampled.style["color"],
        markeredgecolor="white",
    )


def draw_spectral_norms(runs: Sequence[Sampled], out: Path) -> Iterator[Drawn]:
    """σ of the effective weights and of the key-query products, γ and the error of σ."""
    products = {
        kind: [
            all_heads(
                one.records["key_query_norm"][:, attentions_of(one.run, kind)],
                [one.run.attentions[index] for index in attentions_of(one.run, kind)],
            )
            for one in runs
        ]
        for kind in kinds_of(runs)
    }
    spread = _spread(runs)
    norms = _by_kind(runs, "spectral_norm")
    if norms:
        caption = (
            "Largest singular value of the weights that the model multiplies with, by kind. "
            f"{spread} Look for one that jumps or runs away from the others."
        )
        figure = _draw_panels(runs, norms, "spectral norm")
        yield save(figure, out / "spectral_norms.png", "Spectral norms of the weights", caption)
    if products:
        caption = (
            "Largest singular value of the product of a head's key and query weights. "
            f"{spread.replace('layers', 'heads of all layers')} Look for one that runs away: the "
            "bound on the entropy falls exponentially with it."
        )
        figure = _draw_panels(runs, products, "spectral norm")
        yield save(figure, out / "key_query_norms.png", "Key-query products", caption)
    gammas = _by_kind(runs, "gamma")
    if gammas:
        caption = (
            "With σReparam γ is the spectral norm that a weight is set to. It starts at 1, unless "
            f"the model was converted, and the training moves it slowly. {spread}"
        )
        yield save(
            _draw_panels(runs, gammas, "γ (a spectral norm)"),
            out / "gamma.png",
            "γ of σReparam",
            caption,
        )
    errors = _by_kind(runs, "sigma_error")
    if errors:
        caption = (
            "How far one power-iteration step an update leaves σ from the exact one, relative to "
            f"it. {spread} Harmless below a few per cent."
        )
        figure = _draw_panels(runs, errors, "relative error")
        yield save(figure, out / "sigma_error.png", "Error of the estimate of σ", caption)


def draw_gradients(runs: Sequence[Sampled], out: Path) -> Iterator[Drawn]:
    """Gradient norms by layer and kind, update-to-weight ratios, embedding variability."""
    for stack in ("encoder", "decoder"):
        with_stack = [
            one
            for one in runs
            if any(
                matrix.stack == stack and matrix.layer is not None for matrix in one.run.matrices
            )
        ]
        if with_stack:
            yield _draw_gradient_maps(with_stack, stack, out / f"gradients_{stack}.png")
    ratios = _by_kind(runs, "update_ratio")
    if ratios:
        caption = (
            "How far one update moves a weight: the norm of the change over the norm of the "
            f"weight. {_spread(runs)} About 0.001 is usual; a kind that stays far above the "
            "others is being rewritten all the time, one far below does not learn."
        )
        figure = _draw_panels(runs, ratios, "change / weight")
        yield save(figure, out / "update_ratio.png", "Update-to-weight ratio", caption)
    names = dict.fromkeys(name for one in runs for name in one.run.embeddings)
    if names:
        variability = {name: [_of_embedding(one, name) for one in runs] for name in names}
        caption = (
            "Standard deviation over the vocabulary, averaged over the dimensions. One that grows "
            "fast goes with large gradients in the layers above and precedes instability."
        )
        figure = _draw_panels(runs, variability, "standard deviation")
        yield save(figure, out / "embedding_variability.png", "Embedding variability", caption)


def _of_embedding(sampled: Sampled, name: str) -> np.ndarray:
    chosen = [index for index, own in enumerate(sampled.run.embeddings) if own == name]
    return sampled.records["embedding_variability"][:, chosen]


def _draw_gradient_maps(runs: Sequence[Sampled], stack: str, file: Path) -> Drawn:
    norms = [gradient_norms(one.records, one.run.matrices, stack) for one in runs]
    present = [
        kind for kind in range(len(MATRIX_KINDS)) if any(_some(one[:, kind]) for one in norms)
    ]
    deepest = max(one.shape[2] for one in norms)
    height = float(np.clip(len(present) * deepest / 150, 2.2, 4))
    figure, axes = panels([one.name for one in runs], 2, height, sharex=True)
    colours = matplotlib.colormaps["cividis"].with_extremes(bad=NOT_FINITE)
    scale = _logarithmic_scale(norms)
    for sampled, norm, place in zip(runs, norms, axes, strict=True):
        layers = norm.shape[2]
        # The first kind on top, and in each kind's block the first layer at the bottom.
        blocks = norm[:, present[::-1]].reshape(len(norm), -1)
        mesh = place.pcolormesh(
            edges(sampled.updates),
            np.arange(blocks.shape[1] + 1),
            np.ma.masked_invalid(blocks.T),
            cmap=colours,
            norm=scale,
        )
        starts = np.arange(len(present)) * layers
        place.hlines(starts[1:], *place.get_xlim(), color="white", linewidth=1.5)
        place.set_yticks(starts + layers / 2, [MATRIX_KINDS[kind] for kind in present[::-1]])
        place.tick_params(axis="y", length=0)
        place.grid(False)
        count_updates(place)
    add_colour_bar(figure, mesh, axes, label="gradient norm (after clipping)", extend="both")
    caption = (
        f"Gradient norms in the {stack}: a block for each kind of matrix, in it a row a layer, the "
        "first layer at the bottom. Look for blocks or layers that turn bright before the loss "
        "jumps, and for ones that stay dark: they get no gradient. The colours mean the same in "
        "all runs. Grey: 0, not finite, or no such matrix. White: no record."
    )
    return save(figure, file, f"Gradient norms, {stack}", caption)


def _some(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())


def _logarithmic_scale(norms: Sequence[np.ndarray]) -> LogNorm:
    """From the 1st to the 99th percentile: single figures of a diverging run do not set it."""
    everything = np.concatenate([norm.ravel() for norm in norms])
    positive = everything[np.isfinite(everything) & (everything > 0)]
    low, high = np.percentile(positive, (1, 99)) if len(positive) else (1, 1)
    return LogNorm(low, max(high, 1.01 * low))


def _by_kind(runs: Sequence[Sampled], field: str) -> Panels:
    """The kinds of matrices that any run has figures of."""
    found = {}
    for kind in MATRIX_KINDS:
        values = [
            one.records[field][:, [matrix.kind == kind for matrix in one.run.matrices]]
            for one in runs
        ]
        if any(map(_some, values)):
            found[kind] = values
    return found


def _draw_panels(runs: Sequence[Sampled], values: Panels, label: str) -> "matplotlib.figure.Figure":
    figure, axes = panels(list(values), 3, 1.9, sharex=True, sharey=True)
    for place, of_runs in zip(axes, values.values(), strict=True):
        for sampled, figures in zip(runs, of_runs, strict=True):
            if not _some(figures):
                continue
            middle, least, greatest = middle_and_range(figures)
            place.plot(sampled.updates, middle, **sampled.style)
            if len(runs) <= _MOST_BANDS:
                colour = sampled.style["color"]
                place.fill_between(sampled.updates, least, greatest, color=colour, alpha=0.2, lw=0)
        count_updates(place)
    scale_to(axes[0], [figures for of_runs in values.values() for figures in of_runs])
    figure.supylabel(label, fontsize=9)
    add_legend(figure, [one.name for one in runs], [one.style for one in runs])
    return figure


def _spread(runs: Sequence[Sampled]) -> str:
    if len(runs) <= _MOST_BANDS:
        return "Line: the median over the layers; shade: from the least to the greatest."
    return "Line: the median over the layers."
