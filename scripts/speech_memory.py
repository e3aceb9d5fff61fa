#!/usr/bin/env python3
"""Reckons the memory that training a speech model takes, without a GPU.

    speech_memory.py --arch ctc_transformer_reparam_postln_36l --utterances 8 --seconds 30

prints, in GB, what stays in memory from the forward to the backward pass, counted on the CPU in a
model of full width with one layer and with two and carried on to the depth of the architecture;
and the weights, their gradients and one tensor of optimizer state for each (Adagrad, LARS). It
leaves out what a kernel needs for a moment, fragmentation and the CUDA context.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import NamedTuple

import torch
from fairseq import models
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from omegaconf import OmegaConf

import sigma_fairseq  # noqa: F401 (registers the architectures)
from sigma_fairseq.speech.dictionary import LetterDictionary


class Bytes(NamedTuple):
    """Of the parameters, and of what the backward pass needs beside them."""

    parameters: int
    saved: int


def count(arch: str, layers: int, utterances: int, frames: int, amp: bool) -> Bytes:
    """Runs a forward pass on the CPU.

    Args:
        arch: an architecture of the speech models.
        layers: instead of its own.
        utterances: of a batch, all of the same length.
        frames: of 10 ms, of each.
        amp: bfloat16 where autocast has it; fp32 otherwise.
    """
    dictionary = LetterDictionary()
    for letter in "abcdefghijklmnopqrstuvwxyz'|":
        dictionary.add_symbol(letter)
    task = SimpleNamespace(
        data_cfg=SimpleNamespace(input_feat_per_channel=80), target_dictionary=dictionary
    )
    # PyTorch's attention has no dropout on the CPU; on a GPU its dropout keeps a seed alone.
    options = {"encoder_layers": layers, "attention_dropout": 0.0, "encoder_layerdrop": 0.0}
    cfg = OmegaConf.create({"model": {"_name": arch, **options}, "common": {"seed": 1}})
    model = models.build_model(cfg.model, task).train()
    parameters = list(model.parameters())
    own = {tensor.untyped_storage().data_ptr() for tensor in [*parameters, *model.buffers()]}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            saved[place] = tensor  # held, so that no other tensor takes its place
        return tensor

    source = torch.randn(utterances, frames, 80)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=amp),
    ):
        model.get_normalized_probs(model(source), log_probs=True)
    return Bytes(
        sum(parameter.nbytes for parameter in parameters),
        sum(tensor.untyped_storage().nbytes() for tensor in saved.values()),
    )


def main() -> None:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Reckons the memory of training a speech model.")
    names = [name for name in ARCH_MODEL_REGISTRY if name.startswith("ctc_transformer")]
    parser.add_argument(
        "--arch", choices=sorted(names), default="ctc_transformer_reparam_postln_36l"
    )
    parser.add_argument("--utterances", type=int, default=8, metavar="N")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each utterance")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast instead of fp32")
    options = parser.parse_args()
    depth = MODEL_DATACLASS_REGISTRY[options.arch]().encoder_layers
    frames = round(100 * options.seconds)
    one, two = (
        count(options.arch, layers, options.utterances, frames, options.amp) for layers in (1, 2)
    )
    parameters, saved = (a + (depth - 1) * (b - a) for a, b in zip(one, two, strict=True))
    print(f"{options.arch}: {parameters / 4e6:.1f} M parameters")
    print(f"weights, gradients, optimizer  {3 * parameters / 1e9:5.1f} GB")
    print(f"kept for the backward pass     {saved / 1e9:5.1f} GB")
    print(f"together                       {(3 * parameters + saved) / 1e9:5.1f} GB")


if __name__ == "__main__":
    main()
