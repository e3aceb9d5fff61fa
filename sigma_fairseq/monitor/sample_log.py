"""The monitors' samples in fairseq's own log."""

import numpy as np
from fairseq.logging import metrics

from sigma_fairseq.monitor.monitor import Monitor
from sigma_fairseq.monitor.records import finite_mean

#: Figures of a record in fairseq's log, as means or extremes over all layers.
KINDS = ("encoder self", "decoder self", "encoder-decoder")


class SampleLog:
    """Shows the samples in fairseq's own log: progress bar, JSON, TensorBoard and W&B.

    Args:
        monitor: whose samples these are.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._kinds = np.array([attention.kind for attention in monitor.attentions])
        self._shown: dict[str, float] = {}

    def show(self, record: np.ndarray) -> None:
        """Logs a new sample; call it in a training step."""
        layers = finite_mean(record["entropy"], 1)
        means = {
            f"entropy/{kind.replace(' ', '_').replace('-', '_')}": layers[self._kinds == kind]
            for kind in KINDS
            if kind in self._kinds
        }
        figures = {name: finite_mean(values) for name, values in means.items()} | {
            "entropy/lowest_layer": np.fmin.reduce(layers),
            "entropy/bound": finite_mean(record["entropy_bound"]),
            "spectral_norm/mean": finite_mean(record["spectral_norm"]),
            "spectral_norm/largest": np.fmax.reduce(record["spectral_norm"]),
            "spectral_norm/key_query": np.fmax.reduce(record["key_query_norm"], axis=None),
            "gradient_norm/mean": finite_mean(record["gradient_norm"]),
            "gradient_norm/largest": np.fmax.reduce(record["gradient_norm"]),
            "update_ratio/mean": finite_mean(record["update_ratio"]),
            "embedding/variability": finite_mean(record["embedding_variability"]),
        }
        if np.isfinite(record["gamma"]).any():
            figures["gamma/mean"] = finite_mean(record["gamma"])
        self._shown = {name: float(value) for name, value in figures.items()}
        self._log(1)

    def repeat(self) -> None:
        """Logs the last sample again, which a log without a new one would show as missing."""
        self._log(0)

    def _log(self, weight: int) -> None:
        for name, value in self._shown.items():
            metrics.log_scalar(name, value, weight=weight, priority=2000)
