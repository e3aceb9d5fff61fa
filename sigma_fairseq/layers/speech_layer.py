"""The encoder layer of the speech models: no biases, and droppable (Appendix E)."""

import math
from typing import Any

from torch import Tensor, nn

from sigma_fairseq.layers.transformer_layer import BETA_ITSELF, TransformerEncoderLayer


class SpeechEncoderLayer(TransformerEncoderLayer):
    """An encoder layer without biases, (time, batch, channel) → the same.

    Plain weights start from U(±√(1/fan_in)).

    Attributes:
        dropped: whether training leaves the residual branches out; the LayerNorms stay.
    """

    dropped: bool = False
    self_attn_layer_norm: nn.Module
    final_layer_norm: nn.Module

    def forward(
        self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None
    ) -> Tensor:
        if not (self.training and self.dropped):
            output: Tensor = super().forward(x, encoder_padding_mask, attn_mask)
            return output
        if self.normalize_before:
            return x
        nothing = x.new_zeros(())
        x = self.self_attn_layer_norm(self.residual_connection(nothing, x))
        return self.final_layer_norm(self.residual_connection(nothing, x))

    def build_self_attention(self, embed_dim: int, cfg: Any) -> nn.Module:
        return self._build_attention(
            embed_dim,
            cfg.encoder.attention_heads,
            self_attention=True,
            bias=False,
            xformers_att_config=None,
        )

    def build_fc1(self, input_dim: int, output_dim: int, *quant_noise: Any) -> nn.Module:
        return self._build(nn.Linear, (input_dim, output_dim), {"bias": False}, BETA_ITSELF)

    def build_fc2(self, input_dim: int, output_dim: int, *quant_noise: Any) -> nn.Module:
        return self._build(nn.Linear, (input_dim, output_dim), {"bias": False}, BETA_ITSELF)

    def _draw_plain(self, linear: nn.Linear) -> None:
        nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))  # the bound is √(1/fan_in)
