"""fairseq's encoder and decoder layer with a choice of norm placement and reparameterization."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.transformer_layer import (
    TransformerDecoderLayerBase,
    TransformerEncoderLayerBase,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sigma_fairseq.layers.deepnorm import DeepNorm
from sigma_fairseq.reparam import convert
from sigma_fairseq.reparam.layers import init_truncated_normal_

#: What a linear of DeepNorm is initialised with: β of its stack, or gain 1.
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

    def residual_connection(self, x: Tensor, residual: Tensor) -> Tensor:
        """f(x) and x, both (time, batch, channel) → α·x + f(x), with α = 1 outside DeepNorm."""
        return torch.add(x, residual, alpha=self.deepnorm.alpha if self.deepnorm else 1)

    def build_fc1(self, *args: Any, **kwargs: Any) -> nn.Module:
        with self._without_plain_init():
            linear = super().build_fc1(*args, **kwargs)  # type: ignore[misc]
        return self._initialise(linear, beta=("",))

    def build_fc2(self, *args: Any, **kwargs: Any) -> nn.Module:
        with self._without_plain_init():
            linear = super().build_fc2(*args, **kwargs)  # type: ignore[misc]
        return self._initialise(linear, beta=("",))

    def build_self_attention(self, *args: Any, **kwargs: Any) -> nn.Module:
        with self._without_plain_init():
            attention = super().build_self_attention(*args, **kwargs)  # type: ignore[misc]
        return self._initialise(attention, beta=BETA_PROJECTIONS, unit=UNIT_PROJECTIONS)

    def _without_plain_init(self) -> AbstractContextManager[Any]:
        """Under σReparam `_initialise` draws the weights; drawing fairseq's first costs as much."""
        stacks = (self.cfg.encoder, self.cfg.decoder)
        if self.cfg.reparam != "sigma" or any(stack.xformers_att_config for stack in stacks):
            return nullcontext()  # xFormers' attention may draw parameters of its own
        return _SkipDraws()

    def _initialise(
        self, module: nn.Module, beta: tuple[str, ...], unit: tuple[str, ...] = ()
    ) -> nn.Module:
        """Draws the weights of a freshly built module's linears and reparameterizes them.

        `beta` and `unit` name the linears whose Xavier gain is β or 1 under DeepNorm. Outside
        σReparam and DeepNorm the weights stay as fairseq drew them.
        """
        gains = dict.fromkeys(beta, self.deepnorm.beta if self.deepnorm else 1.0)
        gains.update(dict.fromkeys(unit, 1.0))
        for name, gain in gains.items():
            linear = cast(nn.Linear, module.get_submodule(name))
            if self.cfg.reparam == "sigma":
                std = self.cfg.reparam_init_std * gain
                init_truncated_normal_(linear.weight, linear.bias, std)
            elif self.deepnorm is not None:
                nn.init.xavier_normal_(linear.weight, gain)
        return convert(module, reparam=self.cfg.reparam, qkv=self.cfg.reparam_qkv)


class TransformerEncoderLayer(_StableLayer, TransformerEncoderLayerBase):
    """An encoder layer, (time, batch, channel) → the same; see `_StableLayer` for what is added."""


class TransformerDecoderLayer(_StableLayer, TransformerDecoderLayerBase):
    """A decoder layer, (time, batch, channel) → the same; see `_StableLayer` for what is added."""

    def build_encoder_attention(self, *args: Any, **kwargs: Any) -> nn.Module:
        with self._without_plain_init():
            attention = super().build_encoder_attention(*args, **kwargs)
        return self._initialise(attention, beta=BETA_PROJECTIONS, unit=UNIT_PROJECTIONS)


def wrap_layer(layer: nn.Module, cfg: Any) -> nn.Module:
    """Activation checkpointing and FSDP around a layer, by the same options as fairseq's stacks."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(
        layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap
    )
