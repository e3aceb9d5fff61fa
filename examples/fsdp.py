"""σReparam on a model that is sharded over several processes, in plain PyTorch.

    torchrun --nproc-per-node 2 examples/fsdp.py --steps 50

trains a small causal Transformer to go on counting: on two GPUs by NCCL, or where there are none in
two processes on the CPU by gloo. The processes share each batch, so that the losses are those of a
single one, to rounding.

Beside PyTorch's usual steps (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html),
σReparam asks for three things:

- convert before sharding, since u and v start from the whole weights;
- leave the γs out of the shards, as `fully_shard` takes no scalars, and average their gradients;
- call `power_iteration` in every process: it gathers the weights.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sigma_fairseq.reparam import convert, power_iteration, sigma_norms

NUMBERS, TIME, BATCH = 32, 16, 16
MAX_NORM = 0.5


class Decoder(nn.Module):
    """A causal Transformer. Shapes: tokens (batch, time) → logits (batch, time, NUMBERS)."""

    def __init__(self, width: int = 32, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUMBERS, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True)
            for _ in range(layers)
        )
        self.output = nn.Linear(width, NUMBERS)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(TIME, device=tokens.device)
        x = self.embedding(tokens)  # (batch, time, width)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.output(x)


def build_model() -> Decoder:
    """The model with σReparam on its linear layers, the same in every process."""
    torch.manual_seed(1)
    model = Decoder()
    convert(model)
    return model


def batches(steps: int) -> Iterator[Tensor]:
    """Rows of numbers that go up by 1, 2 or 3, (BATCH, TIME + 1), the same in every process."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        first = torch.randint(NUMBERS, (BATCH, 1), generator=generator)
        stride = torch.randint(1, 4, (BATCH, 1), generator=generator)
        yield (first + stride * torch.arange(TIME + 1)) % NUMBERS


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean cross-entropy of each number but the first of a row, given those before it."""
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def build_optimizer(weights: Sequence[Tensor], gammas: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Nesterov SGD; γs in a group of their own, as no operation takes shards and whole tensors."""
    groups = [{"params": weights}, {"params": gammas}]
    return torch.optim.SGD(groups, lr=0.2, momentum=0.9, nesterov=True)


def average_gradients_(parameters: Sequence[Tensor]) -> None:
    """Averages the gradients of scalars over all processes."""
    gradients = torch.stack([parameter.grad for parameter in parameters])
    dist.all_reduce(gradients)
    for parameter, gradient in zip(parameters, gradients / dist.get_world_size(), strict=True):
        parameter.grad = gradient


def clip_gradients_(weights: Sequence[Tensor], gammas: Sequence[Tensor]) -> None:
    """Scales all gradients down to a common norm of at most MAX_NORM."""
    sharded = get_total_norm([weight.grad for weight in weights])
    whole = get_total_norm([gamma.grad for gamma in gammas])
    norm = torch.hypot(sharded.full_tensor(), whole)
    clip_grads_with_norm_(weights, MAX_NORM, norm)
    clip_grads_with_norm_(gammas, MAX_NORM, norm)


def train(mesh: DeviceMesh, steps: int) -> nn.Module:
    """Trains the model on shares of the batches and prints the losses of all.

    Returns:
        The model, sharded.
    """
    model = build_model().to(mesh.device_type)
    gammas = [norm.gamma for norm, _ in sigma_norms(model)]
    # Each block is gathered and freed by itself; the model takes what is left.
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, ignored_params=set(gammas))
    weights = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
    optimizer = build_optimizer(weights, gammas)
    rank, world_size = mesh.get_rank(), mesh.size()
    for step, batch in enumerate(batches(steps), start=1):
        power_iteration(model)
        loss = loss_of(model, batch[rank::world_size].to(mesh.device_type))
        loss.backward()
        average_gradients_(gammas)
        clip_gradients_(weights, gammas)
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        dist.all_reduce(total)
        if rank == 0:
            print(f"step {step}: loss {total.item() / world_size:.6f}")
    return model


def save(model: nn.Module, path: Path) -> None:
    """Writes the whole model from the first process; `build_model()` loads it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)  # every process takes part
    if dist.get_rank() == 0:
        torch.save(state, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Trains a small Transformer with σReparam, sharded by fully_shard.",
        usage="torchrun --nproc-per-node N examples/fsdp.py [--steps N] [--save FILE]",
    )
    parser.add_argument("--steps", type=int, default=50, help="updates (default: 50)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="where to put the trained model")
    args = parser.parse_args()
    world_size = int(os.environ.get("WORLD_SIZE", 0))
    if world_size == 0:
        parser.error("start it by torchrun")
    if BATCH % world_size:
        parser.error(f"{world_size} processes cannot share a batch of {BATCH} evenly")
    # Makes the process group too, and on GPUs picks each process its own.
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (world_size,))
    model = train(mesh, args.steps)
    if args.save:
        save(model, args.save)
    dist.barrier()
    dist.destroy_process_group()
    if mesh.device_type == "cpu":
        # PyTorch's caches of sharded tensors hold on to gloo's threads, and an interpreter that
        # ended before those was seen to abort, with everything done.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
