"""The convolutional front end of the speech models (Appendix E)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma_fairseq.reparam import SigmaConv1d, convert
from sigma_fairseq.reparam.convert import Reparam

KERNEL_SIZE, STRIDE = 7, 3


def subsampled_length(frames: int) -> int:
    """Frames after the convolution of an utterance that has so many before: a third, rounded up."""
    return -(-frames // STRIDE)


class ConvFrontEnd(nn.Module):
    """A scalar scale and bias, a convolution that leaves a third of the frames, GLU, dropout.

    Args:
        input_dim: features of a frame, F.
        embed_dim: width C of the output.
        dropout: probability.
        reparam: of the convolution; see `reparam.convert`.
        init_std: of the weights under σReparam.
    """

    def __init__(
        self, input_dim: int, embed_dim: int, dropout: float, reparam: Reparam, init_std: float
    ) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(()))
        shape = (input_dim, 2 * embed_dim, KERNEL_SIZE)
        padding = KERNEL_SIZE // 2  # so that the number of frames depends on the stride alone
        self.conv: nn.Conv1d
        if reparam == "sigma":
            self.conv = SigmaConv1d(*shape, stride=STRIDE, padding=padding, init_std=init_std)
        else:
            self.conv = nn.Conv1d(*shape, stride=STRIDE, padding=padding)
            convert(self.conv, reparam=reparam)
        self.dropout = nn.Dropout(dropout)

    def forward(self, source: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Subsamples a batch.

        Args:
            source: (B, T, F), normalized features.
            padding_mask: (B, T), True at padding; None if there is none.

        Returns:
            (B, T', C) and the mask of its frames, (B, T') or None; T' = ⌈T/3⌉.
        """
        x = source * self.scale + self.bias
        if padding_mask is not None:
            # What the convolution sees beyond an utterance's end is zero, alone or in a batch.
            x = x.masked_fill(padding_mask[..., None], 0.0)
            # Frame i comes from around frame 3i, and is there if that is.
            padding_mask = padding_mask[:, ::STRIDE]
        x = F.glu(self.conv(x.transpose(1, 2)), dim=1)  # (B, C, T')
        return self.dropout(x.transpose(1, 2)), padding_mask
