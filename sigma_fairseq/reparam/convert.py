"""σReparam, or a baseline of the paper, on any model; and back to plain layers."""

from collections.abc import Callable, Iterator
from typing import Literal, cast, get_args

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from sigma_fairseq.reparam.layer_weights import LayerWeights
from sigma_fairseq.reparam.layers import SigmaConv1d, SigmaLinear
from sigma_fairseq.reparam.sigma_norm import Gamma, RowBlocks, reparameterize

Reparam = Literal["none", "sigma", "spectral_norm", "weight_norm"]
Grouping = Literal["separate", "qk", "qkv"]

#: Which of an attention's projections share one σ and one γ, by their names in fairseq,
#: torchscale and others. Their order is that of `nn.MultiheadAttention`'s packed matrix.
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
GROUP_SIZES = {"separate": (1, 1, 1), "qk": (2, 1), "qkv": (3,)}


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name of the module, module, name of the tensor) of every weight that can be converted."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            yield name, module, "weight"
        elif isinstance(module, nn.MultiheadAttention):
            for tensor in ("in_proj_weight", *(f"{p}_weight" for p in PROJECTIONS)):
                if getattr(module, tensor) is not None:
                    yield name, module, tensor


def convert(
    model: nn.Module,
    *,
    reparam: Reparam = "sigma",
    where: Callable[[str, nn.Module], bool] | None = None,
    gamma: Gamma = "one",
    qkv: Grouping = "separate",
) -> nn.Module:
    """Reparameterizes a model's linear layers in place.

    `nn.Linear`, `nn.Conv1d` and the input projections of `nn.MultiheadAttention` are converted,
    packed ones included. A weight that several modules share (an output layer tied to the
    embedding) is left as it is unless `where` asks for it; so is one that is converted already.

    Args:
        model: any module; parameters keep their values.
        reparam: "sigma" (Eq. 2), "spectral_norm" (γ fixed at 1) or "weight_norm" (Salimans &
            Kingma, 2016), both from `torch.nn.utils.parametrizations`, whose spectral norm takes
            its step of power iteration at every forward pass of training; "none" does nothing.
        where: `where(name, module)` says which modules are converted; default: all.
        gamma: "one" changes the model's function (σ(Ŵ) = 1), "sigma" keeps it. For "sigma" only.
        qkv: which of an attention's projections share one σ and γ (Appendix E.3). For "sigma" only.

    Returns:
        `model`.

    Raises:
        ValueError: an unknown option, a grouping without "sigma", `where` chooses a shared weight,
            or projections of different input width are to share one σ.
    """
    for option, value, allowed in (
        ("reparam", reparam, get_args(Reparam)),
        ("qkv", qkv, get_args(Grouping)),
        ("gamma", gamma, get_args(Gamma)),
    ):
        if value not in allowed:
            raise ValueError(f"{option}: {value!r} is not one of {', '.join(allowed)}")
    if reparam != "sigma" and (qkv != "separate" or gamma != "one"):
        raise ValueError(f"qkv={qkv!r} and gamma={gamma!r} need reparam='sigma', not {reparam!r}")
    if reparam == "none":
        return model

    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    chosen: dict[tuple[int, str], tuple[nn.Module, str]] = {}
    for name, module, tensor in _weights(model):
        if where is not None and not where(name, module):
            continue
        if parametrize.is_parametrized(module, tensor):
            continue
        if owners[id(getattr(module, tensor))] > 1:
            if where is None:
                continue
            raise ValueError(f"{name}.{tensor} is shared with another module: it would be untied")
        chosen[id(module), tensor] = (module, tensor)

    if reparam == "sigma":
        _convert_sigma(model, chosen, gamma, qkv)
    else:
        apply = getattr(parametrizations, reparam)
        for module, tensor in chosen.values():
            apply(module, name=tensor)
    return model


def _convert_sigma(
    model: nn.Module,
    chosen: dict[tuple[int, str], tuple[nn.Module, str]],
    gamma: Gamma,
    qkv: Grouping,
) -> None:
    for attention in list(model.modules()):
        members = [
            chosen.get((id(getattr(attention, projection, None)), "weight"))
            or chosen.get((id(attention), f"{projection}_weight"))
            for projection in PROJECTIONS
        ]
        start = 0
        for size in GROUP_SIZES[qkv]:
            group = [member for member in members[start : start + size] if member is not None]
            start += size
            if len(group) == size > 1:
                reparameterize(*group, gamma=gamma)
                for module, tensor in group:
                    del chosen[id(module), tensor]
    for module, tensor in chosen.values():
        if tensor == "in_proj_weight":
            packed = cast(nn.Parameter, module.in_proj_weight)
            width = len(packed) // len(PROJECTIONS)
            rows = [width * size for size in GROUP_SIZES[qkv]]
            parametrize.register_parametrization(module, tensor, RowBlocks(packed, rows, gamma))
        else:
            reparameterize((module, tensor), gamma=gamma)


@torch.no_grad()
def fuse(model: nn.Module) -> nn.Module:
    """Turns every parametrized layer of a model back into a plain one, in place.

    The weights become the effective ones, as evaluation sees them, so the output of evaluation
    stays the same to rounding; training it further trains plain weights.

    Args:
        model: any module, in training or evaluation mode; its mode is kept.

    Returns:
        `model`.
    """
    parametrized = [module for module in model.modules() if parametrize.is_parametrized(module)]
    effective: list[dict[str, nn.Parameter]] = []
    for module in parametrized:
        # torch's spectral_norm would take a step of power iteration in training mode.
        parametrizations_of(module).eval()
        # All are read before the first is removed: a joint group reads its members' weights.
        effective.append(
            {
                tensor: nn.Parameter(getattr(module, tensor).clone(), _requires_grad(chain))
                for tensor, chain in parametrizations_of(module).items()
            }
        )
    for module, tensors in zip(parametrized, effective, strict=True):
        # Not parametrize.remove_parametrizations: it deletes the property from the module's class,
        # which a deep copy of the module shares, and leaves the copy without its weight.
        module.__class__ = type(module).__bases__[0]
        del module.parametrizations
        for tensor, weight in tensors.items():
            module.register_parameter(tensor, weight)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, LayerWeights):
                setattr(module, name, None)
        if isinstance(module, SigmaLinear):
            module.__class__ = nn.Linear  # type: ignore[assignment]
        elif isinstance(module, SigmaConv1d):
            module.__class__ = nn.Conv1d  # type: ignore[assignment]
    return model


def parametrizations_of(module: nn.Module) -> nn.ModuleDict:
    """The parametrizations of a module by the name of the tensor."""
    return cast(nn.ModuleDict, module.parametrizations)


def _requires_grad(chain: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in chain.parameters())
