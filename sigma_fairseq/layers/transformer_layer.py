"""fairseq's encoder and decoder layer with a choice of norm placement and reparameterization."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.modules import MultiheadAttention
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.transformer_layer import (
    TransformerDecoderLayerBase,
    TransformerEncoderLayerBase,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sigma_fairseq.layers.attention import Attention
from sigma_fairseq.layers.deepnorm import DeepNorm
from sigma_fairseq.reparam import LayerWeights, Pack, convert
from sigma_fairseq.reparam.layers import init_truncated_normal_

#: DeepNorm's Xavier gain, by the name of the linear within what is built: β of the stack, or 1.
BETA_ITSELF = ("",)
BETA_PROJECTIONS = ("v_proj", "out_proj")
UNIT_PROJECTIONS = ("q_proj", "k_proj")


class _SkipDraws(TorchFunctionMode):
    """Leaves uniform draws undone, and so the memory of the weights as it was allocated."""

    skipped = (nn.init.kaiming_uniform_, nn.init.uniform_, Tensor.uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.skipped:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class _StableLayer(nn.Module):
    """What our encoder and decoder layer add to fairseq's, through its own `build_*` methods.

    Args:
        cfg: fairseq's `TransformerConfig` with the fields of `models.options.StabilityConfig`.
        deepnorm: constants of this layer's stack; None for every other norm placement.
        args, kwargs: as for fairseq's layer.
    """

    def __init__(self, cfg: Any, deepnorm: DeepNorm | None, *args: Any, **kwargs: Any) -> None:
        # Plain attributes, set before nn.Module is: the build_* methods run inside its __init__.
        self.cfg = cfg
        self.deepnorm = deepnorm
        super().__init__(cfg, *args, **kwargs)
        if cfg.norm == "noln":
            for name, _ in list(self.named_children()):
                if name.endswith("layer_norm"):
                    setattr(self, name, nn.Identity())
        attentions = [child for child in self.children() if isinstance(child, Attention)]
        packs = [pack for attention in attentions for pack in attention.packs]
        packs += [Pack(self, "fc1"), Pack(self, "fc2")]
        self.layer_weights = LayerWeights(packs) if self._fast and cfg.reparam == "sigma" else None

    @property
    def _fast(self) -> bool:
        """Whether weights are read apart from their modules, which hooks on these would not see."""
        noise = self.cfg.quant_noise
        return not (self.cfg.no_fast_path or self._xformers or noise.pq > 0 or noise.scalar > 0)

    @property
    def _xformers(self) -> bool:
        return bool(self.cfg.encoder.xformers_att_config or self.cfg.decoder.xformers_att_config)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As fairseq's, with all effective weights from one autograd node."""
        with nullcontext() if self.layer_weights is None else self.layer_weights.handed_out():
            return super().forward(*args, **kwargs)

    def residual_connection(self, x: Tensor, residual: Tensor) -> Tensor:
        """f(x) and x, both (time, batch, channel) → α·x + f(x), with α = 1 outside DeepNorm."""
        return torch.add(x, residual, alpha=self.deepnorm.alpha if self.deepnorm else 1)

    def build_fc1(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self._build(super().build_fc1, args, kwargs, BETA_ITSELF)  # type: ignore[misc]

    def build_fc2(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self._build(super().build_fc2, args, kwargs, BETA_ITSELF)  # type: ignore[misc]

    def _build_attention(self, embed_dim: int, heads: int, **kwargs: Any) -> nn.Module:
        """An attention of this layer, with what fairseq's layer gives all of its own."""
        kwargs.update(
            dropout=self.cfg.attention_dropout,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )
        if kwargs["xformers_att_config"]:
            build: Callable[..., nn.Module] = MultiheadAttention
        else:
            build = partial(
                Attention,
                qk_norm=self.cfg.qk_norm,
                temperature=self.cfg.attention_temperature,
                temperature_from_update=self.cfg.temperature_from_update,
                fast=self._fast,
            )
        return self._build(build, (embed_dim, heads), kwargs, BETA_PROJECTIONS, UNIT_PROJECTIONS)

    def _build(
        self,
        build: Callable[..., nn.Module],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        beta: tuple[str, ...],
        unit: tuple[str, ...] = (),
    ) -> nn.Module:
        """Lets fairseq build a module, draws its linears' weights and reparameterizes them.

        `beta` and `unit` name the linears whose Xavier gain is β or 1 under DeepNorm.
        """
        std = self.cfg.reparam_init_std
        # Drawing fairseq's weights only to draw them anew costs as much again; but xFormers'
        # attention may have parameters of its own to draw.
        with _SkipDraws() if std is not None and not self._xformers else nullcontext():
            module = build(*args, **kwargs)
        gains = dict.fromkeys(beta, self.deepnorm.beta if self.deepnorm else 1.0)
        gains.update(dict.fromkeys(unit, 1.0))
        for name, gain in gains.items():
            linear = cast(nn.Linear, module.get_submodule(name))
            if std is not None:
                init_truncated_normal_(linear.weight, linear.bias, std * gain)
            elif self.deepnorm is not None:
                nn.init.xavier_normal_(linear.weight, gain)
            else:
                self._draw_plain(linear)
        return convert(module, reparam=self.cfg.reparam, qkv=self.cfg.reparam_qkv)

    def _draw_plain(self, linear: nn.Linear) -> None:
        """Draws a weight outside σReparam and DeepNorm; fairseq has drawn it."""


class TransformerEncoderLayer(_StableLayer, TransformerEncoderLayerBase):
    """An encoder layer, (time, batch, channel) → the same; see `_StableLayer` for what is added."""

    def build_self_attention(self, embed_dim: int, cfg: Any) -> nn.Module:
        return self._build_attention(
            embed_dim,
            cfg.encoder.attention_heads,
            self_attention=True,
            xformers_att_config=cfg.encoder.xformers_att_config,
        )


class TransformerDecoderLayer(_StableLayer, TransformerDecoderLayerBase):
    """A decoder layer, (time, batch, channel) → the same; see `_StableLayer` for what is added."""

    def build_self_attention(self, embed_dim: int, cfg: Any, **kwargs: Any) -> nn.Module:
        return self._build_attention(
            embed_dim,
            cfg.decoder.attention_heads,
            self_attention=not cfg.cross_self_attention,
            xformers_att_config=cfg.decoder.xformers_att_config,
            **kwargs,
        )

    def build_encoder_attention(self, embed_dim: int, cfg: Any) -> nn.Module:
        return self._build_attention(
            embed_dim,
            cfg.decoder.attention_heads,
            kdim=cfg.encoder.embed_dim,
            vdim=cfg.encoder.embed_dim,
            encoder_decoder_attention=True,
            xformers_att_config=cfg.encoder.xformers_att_config,
        )


def wrap_layer(layer: nn.Module, cfg: Any) -> nn.Module:
    """Activation checkpointing and FSDP around a layer, by the same options as fairseq's stacks."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(
        layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap
    )
