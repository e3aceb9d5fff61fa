"""Says, once, when a training goes wrong: in which layer and head, and at which update."""

import math
from collections.abc import Sequence

import numpy as np

from sigma_fairseq.monitor.parts import Attention
from sigma_fairseq.monitor.records import finite_mean
from sigma_fairseq.verdict import Verdict, judge

#: Losses that a verdict is based on: when twice as many have come, neighbours are averaged.
MOST_LOSSES = 256
#: Samples before a loss can be called growing, or stuck: warmup is slow, and its losses are noisy.
LEAST_FOR_GROWTH = 16
LEAST_FOR_STUCK = 100


class CollapseWatch:
    """Looks at each sample of a `Monitor`: has attention collapsed, where does the loss go?

    Args:
        attentions: those of the monitor.
        threshold: an attention has collapsed when the mean entropy of its heads is below this
            share of uniform attention's, having been above it before.
    """

    def __init__(self, attentions: Sequence[Attention], threshold: float) -> None:
        self._names = [attention.name for attention in attentions]
        self._threshold = threshold
        self._were_above = np.zeros(len(attentions), dtype=bool)
        self._losses: list[float] = []
        self._each = 1  # samples that one of the losses is the mean of
        self._latest: list[float] = []
        self._last_seen = ""
        self._said: set[str] = set()

    def look(self, record: np.ndarray) -> list[str]:
        """What is newly wrong with a sample, a line each; nothing is said a second time."""
        with np.errstate(divide="ignore", invalid="ignore"):  # uniform over one key is 0 too
            share = finite_mean(record["entropy"], 1) / record["entropy_max"]
        self._last_seen = self._lowest(record, share)
        found = []
        collapsed = (share < self._threshold) & self._were_above
        if collapsed.any():
            found.append(("entropy", f"attention entropy has collapsed: {self._last_seen}"))
        self._were_above |= share >= self._threshold
        found += self._about_loss(float(record["loss"]))
        if not np.isfinite(record["gradient_norm"]).any():
            found.append(("gradient", f"gradients are not finite; {self._last_seen}"))
        return self._new(int(record["update"]), found)

    def nonfinite(self, update: int, what: str) -> list[str]:
        """What to say when fairseq has found that gradients are not finite, and of what."""
        return self._new(update, [("gradient", f"{what}; {self._last_seen}")])

    def _lowest(self, record: np.ndarray, share: np.ndarray) -> str:
        if np.isnan(share).all():
            return "no attention entropy is finite"
        index = int(np.nanargmin(share))
        heads = record["entropy"][index]
        head = int(np.nanargmin(heads))
        return (
            f"lowest in {self._names[index]}, {np.nanmean(heads):.4f} nats over its heads "
            f"({share[index]:.1%} of uniform attention's), head {head} with {heads[head]:.4f} nats"
        )

    def _about_loss(self, loss: float) -> list[tuple[str, str]]:
        if not math.isfinite(loss):
            return [("loss", f"the loss is not finite; {self._last_seen}")]
        self._latest.append(loss)
        if len(self._latest) == self._each:
            self._losses.append(float(np.mean(self._latest)))
            self._latest.clear()
        if len(self._losses) == 2 * MOST_LOSSES:
            self._losses = np.reshape(self._losses, (-1, 2)).mean(1).tolist()
            self._each *= 2
        count = len(self._losses) * self._each
        if count < LEAST_FOR_GROWTH:
            return []
        verdict = judge(self._losses)
        if verdict is Verdict.DIVERGED:
            low = min(self._losses)
            return [("loss", f"the loss grows: {loss:.3f} bits after {low:.3f}; {self._last_seen}")]
        if verdict is Verdict.STUCK and count >= LEAST_FOR_STUCK:
            return [("stuck", f"the loss is stuck at {loss:.3f} bits; {self._last_seen}")]
        return []

    def _new(self, update: int, found: list[tuple[str, str]]) -> list[str]:
        new = [(what, text) for what, text in found if what not in self._said]
        self._said.update(what for what, _ in new)
        return [f"update {update}: {text}" for _, text in new]
