"""What the monitors cost a training step: steps with and without a sample, interleaved.

    .venv/bin/python scripts/monitor_cost.py --arch transformer_reparam_postln_18l

Random sentences of random length, cross entropy, Adam; on the GPU if there is one.
"""

import argparse
import math
import time
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from fairseq import models
from fairseq.data import Dictionary
from omegaconf import OmegaConf

import sigma_fairseq  # noqa: F401 (registers the architectures)
from sigma_fairseq.monitor.monitor import Monitor

WARM_UP = 2


def main() -> None:
    """Times the steps and prints medians, ranges and what follows for an interval."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="transformer_postln_6l")
    parser.add_argument("--width", type=int, default=512, help="of the model; FFN 4 times as wide")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument(
        "--tokens", type=int, default=4096, help="target tokens a batch, padding in"
    )
    parser.add_argument("--length", type=int, default=32, help="of the longest sentence")
    parser.add_argument("--steps", type=int, default=10, help="of each kind")
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, dictionary = build(options)
    model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batch = random_batch(options, dictionary, device)
    monitor = Monitor(model, 2, False, lambda record: None)  # samples even updates

    def step(update: int, watched: bool) -> float:
        begin = time.perf_counter()
        model.set_num_updates(update)
        optimizer.zero_grad()
        if watched:
            with monitor.forward(update) as add:
                loss = loss_of(model, batch)
            add(loss, loss.detach(), options.tokens)
        else:
            loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    times: dict[str, list[float]] = {"without": [], "sampled": [], "not sampled": []}
    for number in range(options.steps + WARM_UP):
        taken = (step(number, False), step(2 * number, True), step(2 * number + 1, True))
        if number >= WARM_UP:
            for kind, seconds in zip(times, taken, strict=True):
                times[kind].append(1000 * seconds)
    for kind, milliseconds in times.items():
        low, high = min(milliseconds), max(milliseconds)
        print(f"{kind:12s} {median(milliseconds):9.1f} ms ({low:.1f} to {high:.1f})")
    base = median(times["without"])
    sampled, idle = median(times["sampled"]) / base - 1, median(times["not sampled"]) / base - 1
    print(f"interval 1: {sampled:+.1%} a step; interval 10: {(sampled + 9 * idle) / 10:+.1%}")


def build(options: argparse.Namespace) -> tuple[Any, Dictionary]:
    """The model, as fairseq builds it, and its dictionary."""
    dictionary = Dictionary()
    for number in range(options.vocabulary - len(dictionary)):
        dictionary.add_symbol(str(number))
    config = {
        "_name": options.arch,
        "encoder_embed_dim": options.width,
        "encoder_ffn_embed_dim": 4 * options.width,
        "encoder_attention_heads": options.heads,
        "decoder_attention_heads": options.heads,
        "share_all_embeddings": True,
    }
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return models.build_model(OmegaConf.create({"model": config}).model, task), dictionary


def random_batch(
    options: argparse.Namespace, dictionary: Dictionary, device: torch.device
) -> dict[str, torch.Tensor]:
    """Sources padded on the left, targets on the right, from half the length on."""
    shape = (math.ceil(options.tokens / options.length), options.length)
    source = torch.randint(dictionary.nspecial, len(dictionary), shape)
    target = torch.randint(dictionary.nspecial, len(dictionary), shape)
    lengths = torch.randint(options.length // 2, options.length + 1, shape[:1]).unsqueeze(1)
    places = torch.arange(options.length)
    source[places < options.length - lengths] = dictionary.pad()
    target[places >= lengths] = dictionary.pad()
    batch = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": target}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def loss_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy, summed over the target tokens."""
    logits = model(**batch)[0].flatten(0, 1)
    target = batch["prev_output_tokens"].flatten()
    pad = model.decoder.padding_idx
    return F.cross_entropy(logits, target, ignore_index=pad, reduction="sum")


if __name__ == "__main__":
    main()
