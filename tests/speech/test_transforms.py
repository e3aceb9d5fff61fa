"""Normalization of an utterance."""

import numpy as np
import pytest
from fairseq.data.audio.feature_transforms import get_audio_feature_transform

from sigma_fairseq.speech.transforms import UtteranceNorm


def test_mean_and_variance_over_time_and_frequency() -> None:
    assert get_audio_feature_transform("utterance_norm") is UtteranceNorm
    features = np.random.default_rng(0).normal(-7, 3, (400, 80)).astype(np.float32)
    features += np.linspace(0, 5, 80, dtype=np.float32)
    normalized = UtteranceNorm.from_config_dict()(features)
    assert normalized.dtype == np.float32
    assert abs(normalized.mean(dtype=np.float64)) < 1e-6
    assert abs(normalized.var(dtype=np.float64) - 1) < 1e-6
    # One shift and one scale for all: a frequency that is louder than others stays so.
    slope, shift = np.polyfit(features.ravel(), normalized.ravel(), 1)
    np.testing.assert_allclose(normalized, features * slope + shift, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, -15.942385, 0.1])
def test_silence_is_zero(value: float) -> None:
    normalized = UtteranceNorm()(np.full((1234, 80), value, np.float32))
    assert normalized.dtype == np.float32 and not normalized.any()
