"""The options that a model's state records, so that no other model takes it for its own."""

import json
from typing import Any

import torch
from torch import Tensor

#: Of what is recorded, and of what the tensors mean. A state without it is of version 0, or
#: fairseq's, and is taken as it is.
VERSION = 1

_SIZES = ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")
#: Other values of these make another model, often one of the same tensors.
OPTIONS = (
    *("norm", "reparam", "reparam_qkv", "qk_norm", "reparam_conv", "no_reparam_projections"),
    *(f"{stack}_{size}" for stack in ("encoder", "decoder") for size in _SIZES),
)


def record(options: Any) -> Tensor:
    """The options of a model, a family's flat config, as the characters of a JSON object, int64.

    As a tensor they are in the state, and averaging checkpoints leaves them as they are.
    """
    found: dict[str, Any] = {"version": VERSION}
    for name in OPTIONS:
        if hasattr(options, name):
            value = getattr(options, name)
            found[name] = value if isinstance(value, int) else str(value)
    return torch.tensor([ord(character) for character in json.dumps(found)])


def check_recorded(state: Tensor, model: Tensor) -> None:
    """Compares what a state and a model have recorded.

    Raises:
        ValueError: one line that names the options which differ, or the later version.
    """
    theirs, ours = (json.loads("".join(map(chr, each.int().tolist()))) for each in (state, model))
    if theirs["version"] > VERSION:
        raise ValueError(
            f"the checkpoint is of version {theirs['version']} of sigma_fairseq's states, which is "
            f"later than this one's {VERSION}: update sigma_fairseq"
        )
    differing = [name for name in ours if name != "version" and theirs.get(name) != ours[name]]
    if differing:
        flags = [f"--{name.replace('_', '-')}" for name in differing]
        has, wanted = (
            ", ".join(
                f"{flag} {each.get(name)}" for flag, name in zip(flags, differing, strict=True)
            )
            for each in (theirs, ours)
        )
        raise ValueError(f"the checkpoint is of a model with {has}, this one has {wanted}")
