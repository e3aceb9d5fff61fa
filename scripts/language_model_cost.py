#!/usr/bin/env python3
"""Time and memory of a training step of language models, side by side.

    language_model_cost.py --tokens 9216
    language_model_cost.py --archs transformer_lm_postln_wiki103_32l \
        transformer_lm_reparam_noln_wiki103_32l

The models of Appendix G by default, on the vocabulary of WikiText-103: random blocks of 512 tokens,
words about as frequent as in text (their rank to the power of -1.2), fairseq's adaptive loss and
Nesterov SGD, gradients clipped, in fp32; on the GPU if there is one. A step is one forward and
backward pass and one update, power iteration included. The steps of the models take turns; each
model's peak memory is that of a process that trains it alone.
"""

import argparse
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from fairseq import models
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.data import Dictionary
from fairseq.optim.nag import NAG
from omegaconf import OmegaConf

import sigma_fairseq  # noqa: F401 (registers the architectures)

WARM_UP = 1


def main() -> None:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--archs",
        nargs="+",
        metavar="ARCH",
        default=["transformer_lm_postln_wiki103_16l", "transformer_lm_reparam_noln_wiki103_16l"],
        help="the first is what the others are compared with (default: %(default)s)",
    )
    parser.add_argument("--tokens", type=int, default=9216, help="of a step")
    parser.add_argument("--block", type=int, default=512, help="tokens of a block")
    parser.add_argument("--vocabulary", type=int, default=267_744)
    parser.add_argument("--layers", type=int, help="in place of the architecture's")
    parser.add_argument("--width", type=int, default=1024, help="of the model; FFN 4 times as wide")
    parser.add_argument("--steps", type=int, default=10, help="that are timed, of each model")
    options = parser.parse_args()
    if options.tokens < options.block:
        parser.error(f"--tokens {options.tokens} is less than a --block of {options.block}")

    # Before this process takes memory of its own.
    peaks = {}
    for arch in options.archs:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            try:
                peaks[arch] = alone.submit(peak_memory, arch, options).result()
            except BrokenProcessPool:
                parser.exit(
                    1, f"{arch} was killed: too little memory for {options.tokens} tokens\n"
                )
    steps = {arch: training(arch, options) for arch in options.archs}
    times: dict[str, list[float]] = {arch: [] for arch in options.archs}
    for number in range(WARM_UP + options.steps):
        for arch, step in steps.items():
            begin = time.perf_counter()
            step(number)
            if number >= WARM_UP:
                times[arch].append(time.perf_counter() - begin)

    first = options.archs[0]
    for arch in options.archs:
        seconds = times[arch]
        ratios = [mine / base for mine, base in zip(seconds, times[first], strict=True)]
        print(
            f"{arch:40s} {median(seconds):8.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"
            f"  x{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            f"  {peaks[arch] / 1e9:6.2f} GB  x{peaks[arch] / peaks[first]:.3f}"
        )


def training(arch: str, options: argparse.Namespace) -> Callable[[int], None]:
    """Builds a model; returns step(number of the update)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dictionary = Dictionary()
    for number in range(options.vocabulary - len(dictionary)):
        dictionary.add_symbol(str(number))
    task = SimpleNamespace(
        source_dictionary=dictionary, target_dictionary=dictionary, args=SimpleNamespace(data=None)
    )
    widths = {"decoder_embed_dim": options.width, "decoder_ffn_embed_dim": 4 * options.width}
    depth = {"decoder_layers": options.layers} if options.layers else {}
    # PyTorch's attention has no dropout on the CPU; on a GPU it costs next to nothing.
    dropout = {} if device.type == "cuda" else {"attention_dropout": 0.0}
    cfg = OmegaConf.create(
        {
            "model": {"_name": arch, **widths, **depth, **dropout},
            "task": {"tokens_per_sample": options.block, "add_bos_token": False},
            "common": {"tpu": False},
        }
    )
    cfg.task.max_target_positions = None
    torch.manual_seed(1)
    model: Any = models.build_model(cfg.model, task).to(device).train()
    criterion = AdaptiveLoss(task, sentence_avg=False)
    optimizer = NAG(model.parameters(), lr=1e-3, momentum=0.99)
    frequency = torch.arange(1.0, len(dictionary) - dictionary.nspecial + 1) ** -1.2
    rows, columns = options.tokens // options.block, options.block + 1
    words = dictionary.nspecial + frequency.multinomial(rows * columns, replacement=True)
    words = words.view(rows, columns).to(device)
    lengths = torch.full((len(words),), options.block, device=device)
    net_input = {"src_tokens": words[:, :-1], "src_lengths": lengths}
    sample = {"net_input": net_input, "target": words[:, 1:].contiguous()}

    def step(number: int) -> None:
        model.set_num_updates(number)
        optimizer.zero_grad()
        loss, size, _ = criterion(model, sample)
        (loss.sum() / size).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def peak_memory(arch: str, options: argparse.Namespace) -> int:
    """Bytes: on a GPU what PyTorch held, on a CPU what the process grew by."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = training(arch, options)
    for number in range(2):  # the second has the optimizer's state beside everything else
        step(number)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


if __name__ == "__main__":
    main()
