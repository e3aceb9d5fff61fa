"""CAPE: sinusoidal embeddings of positions that are moved and stretched in training."""

import math

import torch
from torch import Tensor, nn


class CAPE(nn.Module):
    """Continuous augmented positional embeddings (Likhomanenko et al., 2021, arXiv:2106.03143).

    Positions are times in seconds minus their mean over the utterance. In training they are then
    stretched and moved, by other amounts in each utterance, so that only distances mean anything.
    Dimension i of the embedding is sin(position · f_i + (π/2)·(i mod 2)) with
    f_i = 30·exp(-2·⌊i/2⌋·ln(10⁴)/C).

    Args:
        seconds_per_frame: time from one frame to the next.
        global_shift: seconds; an utterance is moved by up to so much, uniformly, to either side.
        local_shift: seconds; a frame is moved by up to so much, uniformly, to either side.
        max_scale: an utterance is stretched by a factor from 1/max_scale to max_scale, its
            logarithm uniform; 1 for none.

    Raises:
        ValueError: a negative shift or a scale below 1.
    """

    def __init__(
        self,
        seconds_per_frame: float,
        global_shift: float = 30.0,
        local_shift: float = 0.0,
        max_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not (global_shift >= 0 and local_shift >= 0 and max_scale >= 1):
            raise ValueError(
                f"CAPE: shifts of {global_shift} and {local_shift} seconds and a scale of "
                f"{max_scale}; allowed: shifts from 0, a scale from 1"
            )
        self.seconds_per_frame = seconds_per_frame
        self.global_shift = global_shift
        self.local_shift = local_shift
        self.max_scale = max_scale

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """The embeddings to be added to x.

        Args:
            x: (B, T, C).
            padding_mask: (B, T), True at padding; None if there is none.

        Returns:
            (B, T, C) in the dtype of x, zero at padding.
        """
        batch, time, width = x.shape
        # In fp32 whatever x is: a thousand radians need its digits.
        seconds = self.seconds_per_frame * torch.arange(time, device=x.device, dtype=torch.float32)
        valid = torch.ones(batch, time, device=x.device)
        if padding_mask is not None:
            valid = (~padding_mask).float()
        mean = (seconds * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True)
        positions = self._augmented(seconds - mean) if self.training else seconds - mean
        index = torch.arange(width, device=x.device)
        frequencies = 30.0 * torch.exp(index // 2 * (-2.0 * math.log(1e4) / width))
        angles = positions[..., None] * frequencies + math.pi / 2 * (index % 2)
        return (angles.sin() * valid[..., None]).to(x.dtype)

    def _augmented(self, positions: Tensor) -> Tensor:
        """Positions (B, T) as training sees them."""
        utterance = positions[:, :1]
        if self.max_scale > 1:
            positions = positions * self.max_scale ** _uniform(utterance, 1.0)
        if self.local_shift > 0:
            positions = positions + _uniform(positions, self.local_shift)
        return positions + _uniform(utterance, self.global_shift)


def _uniform(like: Tensor, bound: float) -> Tensor:
    return torch.empty_like(like).uniform_(-bound, bound)
