"""What the figures show, computed from a run's records. N is the number of records."""

from typing import Any, NamedTuple

import numpy as np

from sigma_fairseq.report.runs import MATRIX_KINDS, Attention, Matrix, Run


class Sampled(NamedTuple):
    """A run as it is drawn.

    Attributes:
        run: the run.
        name: what it is called, different for each run of a page.
        records: those that are drawn.
        style: colour and dash of its lines.
    """

    run: Run
    name: str
    records: np.ndarray
    style: dict[str, Any]

    @property
    def updates(self) -> np.ndarray:
        """(N,)"""
        return self.records["update"]


def attentions_of(run: Run, kind: str) -> list[int]:
    """Indices of the attentions of a kind, from the first layer to the last."""
    found = [index for index, attention in enumerate(run.attentions) if attention.kind == kind]
    return sorted(found, key=lambda index: run.attentions[index].layer)


def mean_of_heads(values: np.ndarray, attentions: list[Attention]) -> np.ndarray:
    """(N, A, H) → (N, A), NaN where the figure of a head is."""
    heads = np.array([attention.heads for attention in attentions])
    return np.where(_is_head(values, heads), values, 0).sum(axis=2) / heads


def least_of_heads(values: np.ndarray, attentions: list[Attention]) -> np.ndarray:
    """(N, A, H) → (N, A), NaN where the figure of a head is."""
    heads = np.array([attention.heads for attention in attentions])
    return np.where(_is_head(values, heads), values, np.inf).min(axis=2, initial=np.inf)


def all_heads(values: np.ndarray, attentions: list[Attention]) -> np.ndarray:
    """(N, A, H) → (N, number of heads in all)."""
    heads = np.array([attention.heads for attention in attentions])
    return values[:, _is_head(values, heads)]


def _is_head(values: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """(A, H), False where an attention has fewer heads than there are columns."""
    return np.arange(values.shape[2]) < heads[:, None]


def lowest_layer(run: Run) -> tuple[float, Attention] | None:
    """The least entropy of a layer, in nats, at the last recorded update, and whose it is.

    The entropy is NaN if that of any layer is. None without monitors.
    """
    if not run.attentions:
        return None
    last = run.file[run.rows[-1:]]
    entropy = mean_of_heads(last["entropy"], run.attentions)[0]
    lowest = int(np.argmin(entropy))  # a NaN counts as the least
    return float(entropy[lowest]), run.attentions[lowest]


def gradient_norms(records: np.ndarray, matrices: list[Matrix], stack: str) -> np.ndarray:
    """Gradient norms of a stack, (N, kinds, layers), with the kinds in `MATRIX_KINDS`' order.

    Matrices of one kind in one layer, as in self-attention and the encoder's in a decoder, count
    as one. NaN where a layer has no such matrix.
    """
    layers = 1 + max(one.layer for one in matrices if one.stack == stack and one.layer is not None)
    squares = np.full((len(records), len(MATRIX_KINDS), layers), np.nan)
    for index, matrix in enumerate(matrices):
        if matrix.stack == stack and matrix.layer is not None:
            place = np.s_[:, MATRIX_KINDS.index(matrix.kind), matrix.layer]
            before = np.nan_to_num(squares[place])
            squares[place] = before + records["gradient_norm"][:, index].astype(float) ** 2
    return np.sqrt(squares)


def middle_and_range(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, M) → median, least and greatest over M of what is finite, NaN where nothing is."""
    finite = np.ma.masked_invalid(values)
    figures = np.ma.median(finite, axis=1), finite.min(axis=1), finite.max(axis=1)
    median, least, greatest = (np.ma.filled(figure, np.nan) for figure in figures)
    return median, least, greatest


def in_bins(
    updates: np.ndarray, values: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Last update, mean, least and greatest value of up to `most` stretches of equal length.

    What is not finite in a stretch is left out; a stretch of nothing else is NaN.
    """
    stretches = np.array_split(np.arange(len(values)), min(most, len(values)))
    last = updates[[stretch[-1] for stretch in stretches]]
    figures = np.full((3, len(stretches)), np.nan)
    for number, stretch in enumerate(stretches):
        finite = values[stretch][np.isfinite(values[stretch])].astype(float)
        if len(finite):
            figures[:, number] = finite.mean(), finite.min(), finite.max()
    return last, *figures
