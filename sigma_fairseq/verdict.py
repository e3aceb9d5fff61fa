"""Whether a training works, from its loss alone.

The paper counts a run as diverged when its loss grows and does not come back, or is not finite. In
numbers, and with what else there is to say of a run:

The *low* at a place is the least median of three neighbouring losses before it, or the start if
that is less. A loss is *far above* a low when it lies above it by more than `FAR` of what the run
had learned, start - low, and by more than `NOISE` of the start. A loss that is not finite is far
above every low.

- *diverged*: the last loss is not finite, or all of the last eighth (three at least) are far above
  the low.
- *stuck*: the median of the last quarter is above `UNLEARNED` of the start, and less than `FALLING`
  of the start below that of the second quarter. Translation models that do not train end so: they
  learn how frequent each token is, in a few updates, and then nothing more. A slow run falls all
  the time, and one that has converged is flat, but low. To be stuck takes `PATIENCE` losses.
- *recovered*: neither, but some loss was far above the low before it: a spike that went away.
- *healthy*: everything else, whether it has converged or still falls.

A verdict on a run that goes on is about what it did so far: a stuck run may come loose and a
diverged one come back.
"""

import enum
import math
from collections.abc import Sequence

import numpy as np

FAR = 0.2
NOISE = 0.05
UNLEARNED = 2 / 3
FALLING = 0.02
PATIENCE = 8


class Verdict(enum.StrEnum):
    """What became of a training; see the module's text."""

    HEALTHY = "healthy"
    RECOVERED = "recovered"
    STUCK = "stuck"
    DIVERGED = "diverged"

    @property
    def fatal(self) -> bool:
        """Whether the run is of no use."""
        return self in (Verdict.STUCK, Verdict.DIVERGED)


def judge(losses: Sequence[float], start: float | None = None) -> Verdict:
    """Judges a training by its losses.

    Args:
        losses: training losses in bits a token, of equal stretches of the run so far, such as
            fairseq's log intervals.
        start: the loss before training. By default the first loss that is finite, which of a hot
            run can hold its first jump already: give it if it is known, from other runs on the
            same data say.

    Raises:
        ValueError: there are no losses.
    """
    if len(losses) == 0:
        raise ValueError("a run without losses cannot be judged")
    values = np.array([loss if math.isfinite(loss) else math.inf for loss in losses])
    if values[-1] == math.inf:
        return Verdict.DIVERGED
    if start is None:
        start = float(values[np.isfinite(values)][0])
    lows = _lows(values, start)
    if (values[-max(3, len(values) // 8) :] - lows[-1]).min() > _far(lows[-1], start):
        return Verdict.DIVERGED
    if _is_stuck(values, start):
        return Verdict.STUCK
    if any(loss - low > _far(low, start) for loss, low in zip(values[1:], lows[1:], strict=False)):
        return Verdict.RECOVERED
    return Verdict.HEALTHY


def _lows(values: np.ndarray, start: float) -> np.ndarray:
    """The low before each loss and, as the last, the one after all of them."""
    if len(values) < 3:
        return np.full(len(values) + 1, start)
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values, 3), axis=1)
    return np.minimum.accumulate(np.concatenate([[start] * 3, medians]))


def _far(low: float, start: float) -> float:
    return max(FAR * (start - low), NOISE * start)


def _is_stuck(values: np.ndarray, start: float) -> bool:
    if len(values) < PATIENCE:
        return False
    quarter = len(values) // 4
    earlier, later = np.median(values[quarter : 2 * quarter]), np.median(values[-quarter:])
    return bool(later > UNLEARNED * start and earlier - later < FALLING * start)
