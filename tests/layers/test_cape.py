"""CAPE against its formula in float64, and its augmentation against its distribution."""

import math

import numpy as np
import pytest
import torch

from sigma_fairseq.layers.cape import CAPE

WIDTH = 12


def written_out(positions: np.ndarray) -> np.ndarray:
    """(frames,) seconds → (frames, WIDTH), a number at a time."""
    return np.array(
        [
            [
                math.sin(
                    position * 30 * math.exp(-2 * (i // 2) * math.log(1e4) / WIDTH)
                    + (math.pi / 2 if i % 2 else 0)
                )
                for i in range(WIDTH)
            ]
            for position in positions
        ]
    )


def positions_of(embeddings: torch.Tensor) -> np.ndarray:
    """Seconds from the slowest pair of dimensions, whose period is over 400 s."""
    slow = 30 * math.exp(-2 * (WIDTH // 2 - 1) * math.log(1e4) / WIDTH)
    return torch.atan2(embeddings[..., -2], embeddings[..., -1]).double().numpy() / slow


def test_evaluation_centres_each_utterance() -> None:
    module = CAPE(0.03).eval()
    padding = torch.zeros(2, 50, dtype=torch.bool)
    padding[1, 31:] = True
    embeddings = module(torch.zeros(2, 50, WIDTH), padding)
    for row, frames in ((0, 50), (1, 31)):
        seconds = 0.03 * np.arange(frames)
        wanted = written_out(seconds - seconds.mean())
        np.testing.assert_allclose(embeddings[row, :frames].numpy(), wanted, atol=1e-5)
    assert not embeddings[1, 31:].any()
    torch.testing.assert_close(module(torch.zeros(1, 31, WIDTH), None), embeddings[1:, :31])


def test_training_moves_utterances_and_keeps_distances() -> None:
    torch.manual_seed(0)
    module = CAPE(0.03, global_shift=30.0)
    seconds = positions_of(module(torch.zeros(2000, 5, WIDTH), None))
    np.testing.assert_allclose(np.diff(seconds, axis=1), 0.03, atol=2e-3)
    shifts = seconds.mean(1)
    assert -30 <= shifts.min() < -29
    assert 29 < shifts.max() <= 30
    assert abs(shifts.mean()) < 1.5
    assert shifts.std() == pytest.approx(30 / math.sqrt(3), rel=0.05)


def test_training_stretches_utterances() -> None:
    torch.manual_seed(0)
    module = CAPE(1.0, global_shift=0.0, max_scale=2.0)
    seconds = positions_of(module(torch.zeros(2000, 3, WIDTH), None))
    factors = seconds[:, 2]  # of a position 1 s after the middle
    np.testing.assert_allclose(seconds[:, 0], -factors, atol=1e-3)
    logarithms = np.log2(factors)
    assert logarithms.min() < -0.98
    assert logarithms.max() > 0.98
    assert np.abs(logarithms).max() <= 1 + 1e-3
    assert logarithms.std() == pytest.approx(1 / math.sqrt(3), rel=0.05)


def test_training_moves_single_frames() -> None:
    torch.manual_seed(0)
    module = CAPE(1.0, global_shift=0.0, local_shift=0.25)
    seconds = positions_of(module(torch.zeros(500, 5, WIDTH), None))
    moved = seconds - np.arange(-2, 3)
    assert 0.24 < np.abs(moved).max() <= 0.25 + 1e-3
    assert abs(np.corrcoef(moved[:, 0], moved[:, 1])[0, 1]) < 0.15


def test_positions_are_exact_in_half_precision() -> None:
    module = CAPE(0.03).half().eval()
    embeddings = module(torch.zeros(1, 1001, WIDTH, dtype=torch.half), None)
    assert embeddings.dtype == torch.half
    wanted = written_out(0.03 * np.arange(1001) - 15.0)
    # Frequencies that were rounded to fp16 would be off by whole turns at 15 s.
    np.testing.assert_allclose(embeddings[0].float().numpy(), wanted, atol=2e-3)


@pytest.mark.parametrize(
    "options", [{"global_shift": -1.0}, {"local_shift": -0.1}, {"max_scale": 0.5}]
)
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allowed: shifts from 0, a scale from 1"):
        CAPE(0.03, **options)
