"""Feature transforms for a data folder's `config.yaml`, by fairseq's registry."""

from typing import Any

import numpy as np
from fairseq.data.audio.feature_transforms import (
    AudioFeatureTransform,
    register_audio_feature_transform,
)


@register_audio_feature_transform("utterance_norm")
class UtteranceNorm(AudioFeatureTransform):
    """Zero mean and unit variance over time and frequency together (Appendix E).

    fairseq's `utterance_cmvn` normalizes every frequency by itself. It comes before `specaugment`,
    whose mask value 0 is then the mean.
    """

    @classmethod
    def from_config_dict(cls, config: Any = None) -> "UtteranceNorm":
        """It has no settings."""
        return cls()

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(frames, features) fp32 → the same shape and type; zeros where all are equal."""
        if np.ptp(features) == 0:
            return np.zeros_like(features)
        mean = features.mean(dtype=np.float64)
        deviation = features.std(dtype=np.float64)
        return ((features - mean) / deviation).astype(np.float32)

    def __repr__(self) -> str:
        return "UtteranceNorm()"
