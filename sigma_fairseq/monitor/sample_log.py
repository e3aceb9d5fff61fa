"""The monitors' samples in fairseq's own log."""

import numpy as np
from fairseq.logging import metrics

from sigma_fairseq.monitor.monitor import Monitor

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
        layers = np.nanmean(record["entropy"], 1)
        means = {
            f"entropy/{kind.replace(' ', '_').replace('-', '_')}": layers[
                self._kinds == kind
            ].mean()
            for kind in KINDS
            if kind in self._kinds
        }
        figures = {
            **means,
            "entropy/lowest_layer": np.nanmin(layers),
            "entropy/bound": np.nanmean(record["entropy_bound"]),
            "spectral_norm/mean": np.nanmean(record["spectral_norm"]),
            "spectral_norm/largest": np.nanmax(record["spectral_norm"]),
            "spectral_norm/key_query": np.nanmax(record["key_query_norm"]),
            "gradient_norm/mean": np.nanmean(record["gradient_norm"]),
            "gradient_norm/largest": np.nanmax(record["gradient_norm"]),
            "update_ratio/mean": np.nanmean(record["update_ratio"]),
        }
        self._shown = {name: float(value) for name, value in figures.items()}
        self._log(1)

    def repeat(self) -> None:
        """Logs the last sample again, which a log without a new one would show as missing."""
        self._log(0)

    def _log(self, weight: int) -> None:
        for name, value in self._shown.items():
            metrics.log_scalar(name, value, weight=weight, priority=2000)
