"""All effective weights of a layer as one autograd node."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby
from math import gcd
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigma_fairseq.reparam.effective_weight import EPSILON, at_least_fp32, effective_weight
from sigma_fairseq.reparam.sigma_norm import JointMember, SigmaNorm


class Pack:
    """Linear layers of one input, whose weights are read as one matrix.

    Args:
        owner: the module that has them.
        names: their names in it, in the order in which their outputs lie side by side.
    """

    def __init__(self, owner: nn.Module, *names: str) -> None:
        self.owner = owner
        self.names = names
        self._handed: Tensor | None = None
        self._frozen: tuple[Tensor, Tensor | None] | None = None

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers themselves."""
        return [getattr(self.owner, name) for name in self.names]

    def weight(self) -> Tensor:
        """The layers' (effective) weights, (sum of their outputs, inputs)."""
        if self._handed is not None:
            return self._handed
        if self._frozen is not None:
            return self._current()[0]
        return _joined([linear.weight for linear in self.linears])

    def bias(self) -> Tensor | None:
        """The layers' biases, (sum of their outputs,); None for layers without."""
        if self._frozen is not None:
            return self._current()[1]
        biases = [linear.bias for linear in self.linears]
        return None if biases[0] is None else _joined(biases)

    def _current(self) -> tuple[Tensor, Tensor | None]:
        """What is frozen, anew where the model has been moved or cast since."""
        assert self._frozen is not None
        frozen, weight = self._frozen, self.linears[0].weight
        if (frozen[0].device, frozen[0].dtype) != (weight.device, weight.dtype):
            self._frozen = None
            with torch.no_grad():
                self._frozen = frozen = self.weight(), self.bias()
        return frozen

    def hand(self, weight: Tensor | None) -> None:
        """Sets what `weight` reads, and each of the layers by itself; None ends that."""
        self._handed = weight
        linears = self.linears
        parts: Sequence[Tensor | None] = [weight] * len(linears)
        if weight is not None and len(linears) > 1:
            parts = weight.split([linear.out_features for linear in linears])
        for linear, part in zip(linears, parts, strict=True):
            cast(Any, linear).parametrizations["weight"][0].handed = part

    @torch.no_grad()
    def freeze(self) -> None:
        """Joins plain layers for good, for inference: from then on their values must not change."""
        if len(self.names) > 1:
            self._frozen = self.weight(), self.bias()


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _norm(chain: Any) -> SigmaNorm:
    """The norm of a parametrized weight."""
    first = chain[0]
    return first.shared[0] if isinstance(first, JointMember) else first


class Batch(NamedTuple):
    """Consecutive matrices of equal shape in a layer, as power iteration leaves them.

    Attributes:
        sigma: σ of each, (n, 1, 1).
        scale: γ/σ of each, (n, 1, 1).
        left, right: (n, rows, 1) and (n, 1, columns), whose product is γ/σ·uvᵀ.
    """

    sigma: Tensor
    scale: Tensor
    left: Tensor
    right: Tensor


class LayerWeights(nn.Module):
    """The σReparam weights of a layer, which its forward pass takes from one autograd node.

    `power_iteration` leaves σ of the layer's matrices here, which training uses until a weight
    changes. Evaluation, and training without power iteration, compute σ anew in every forward pass.

    Args:
        packs: every reparameterized linear of the layer once. Linears that share a σ are next to
            each other, in the order of their stack.
    """

    def __init__(self, packs: Sequence[Pack]) -> None:
        super().__init__()
        self.packs = tuple(packs)
        linears = [linear for pack in packs for linear in pack.linears]
        self._chains = tuple(cast(Any, linear).parametrizations["weight"] for linear in linears)
        norms = [_norm(chain) for chain in self._chains]
        # In a tuple: as children they would be in the state twice.
        self.norms = tuple(dict.fromkeys(norms))
        self._owners = [self.norms.index(norm) for norm in norms]
        rows = [0] * len(self.norms)
        for linear, owner in zip(linears, self._owners, strict=True):
            rows[owner] += linear.out_features
        shapes = [(count, len(norm.v)) for count, norm in zip(rows, self.norms, strict=True)]
        #: (number, rows, columns) of consecutive matrices of equal shape
        self.shapes = [(len(list(run)), *shape) for shape, run in groupby(shapes)]
        self.width = gcd(*(columns for _, columns in shapes))
        lines = [count * columns // self.width for count, columns in shapes]
        self.lines = [x.out_features * x.in_features // self.width for x in linears]
        each = iter(self.lines)
        self.pack_lines = [sum(next(each) for _ in pack.names) for pack in packs]
        self.pack_columns = [pack.linears[0].in_features for pack in packs]
        # Sums what each line of the flat weights contributes over the lines of its matrix.
        sums = torch.zeros(len(lines), sum(lines))
        for row, end, length in zip(sums, accumulate(lines), lines, strict=True):
            row[end - length : end] = 1
        self.sums: Tensor
        self.register_buffer("sums", sums, persistent=False)
        self._prepared: tuple[list[Batch], list[tuple[int, int]]] = ([], [])

    def _tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        return [norm.gamma for norm in self.norms], [chain.original for chain in self._chains]

    def _state(self) -> list[tuple[int, int]]:
        gammas, weights = self._tensors()
        return [(tensor._version, tensor.data_ptr()) for tensor in (*gammas, *weights)]

    def prepare(self, batches: list[Batch]) -> None:
        """Takes what holds for the present weights, one `Batch` for each of `shapes`."""
        self._prepared = batches, self._state()

    @torch.no_grad()
    def _measured(self) -> list[Batch]:
        """What holds for the present weights and singular vectors."""
        gammas, weights = self._tensors()
        counts = [count for count, _, _ in self.shapes]
        ends = list(accumulate(counts))
        runs = [self.norms[end - count : end] for end, count in zip(ends, counts, strict=True)]
        lefts = [torch.stack([norm.u for norm in run]).unsqueeze(2) for run in runs]
        rights = [torch.stack([norm.v for norm in run]).unsqueeze(1) for run in runs]
        sigmas = [
            F.threshold(torch.bmm(left.mT, torch.bmm(matrices, right.mT)), EPSILON, 1.0)
            for left, matrices, right in zip(
                lefts, self.matrices(self.flat(weights)), rights, strict=True
            )
        ]
        scales = torch._foreach_div(torch.stack(gammas).view(-1, 1, 1).split(counts), sigmas)
        scaled = torch._foreach_mul(lefts, scales)
        return [Batch(*values) for values in zip(sigmas, scales, scaled, rights, strict=True)]

    @contextmanager
    def handed_out(self) -> Iterator[None]:
        """Inside it, the layer's linears and packs read their Ŵ from one node."""
        gammas, weights = self._tensors()
        device = weights[0].device.type
        dtype = weights[0].dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            prepared, state = self._prepared
            current = self.training and state == self._state()
            batches = prepared if current else self._measured()
            packed = _Node.apply(self, batches, dtype, *gammas, *weights)
        try:
            for pack, weight in zip(self.packs, packed, strict=True):
                pack.hand(weight)
            yield
        finally:
            for pack in self.packs:
                pack.hand(None)

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """Matrices below each other in lines of equal width, fp32 or wider, (lines, width)."""
        return at_least_fp32(torch.cat([tensor.reshape(-1, self.width) for tensor in tensors]))

    def matrices(self, flat: Tensor) -> list[Tensor]:
        """The batches within a flat tensor, views of (number, rows, columns)."""
        lines = [number * rows * columns // self.width for number, rows, columns in self.shapes]
        return [
            part.view(shape) for part, shape in zip(flat.split(lines), self.shapes, strict=True)
        ]

    def plain(self, gammas: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """What the node gives, from one node a weight, which can be differentiated twice."""
        stacks: list[list[Tensor]] = [[] for _ in self.norms]
        places = []
        for owner, weight in zip(self._owners, weights, strict=True):
            places.append((owner, len(stacks[owner])))
            stacks[owner].append(weight)
        effective = [
            effective_weight(
                gammas[owner], self.norms[owner].u, self.norms[owner].v, stacks[owner], index
            )
            for owner, index in places
        ]
        each = iter(effective)
        return [_joined([next(each) for _ in pack.names]) for pack in self.packs]


class _Node(torch.autograd.Function):
    """γ and W of a layer → Ŵ of its packs, in the dtype of the matrix multiplication.

    The formulas of `effective_weight` for all matrices at a time: an operation here is one for all
    matrices, or one for all of equal shape.
    """

    @staticmethod
    def forward(
        ctx: Any, layer: LayerWeights, batches: list[Batch], dtype: torch.dtype, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.layer, ctx.batches = layer, batches
        ctx.save_for_backward(*tensors)
        flat = layer.flat(tensors[len(layer.norms) :])
        torch._foreach_mul_(layer.matrices(flat), [batch.scale for batch in batches])
        flat = flat.to(dtype)
        packs = zip(flat.split(layer.pack_lines), layer.pack_columns, strict=True)
        return tuple(part.view(-1, columns) for part, columns in packs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layer, batches = ctx.layer, ctx.batches
        tensors = ctx.saved_tensors
        gammas, weights = tensors[: len(layer.norms)], tensors[len(layer.norms) :]
        if torch.is_grad_enabled():
            plain = layer.plain(gammas, weights)
            again = [grad.to(out.dtype) for grad, out in zip(grads, plain, strict=True)]
            return None, None, None, *torch.autograd.grad(plain, tensors, again, create_graph=True)
        with torch.autocast(grads[0].device.type, enabled=False):
            grad_gammas, flat = _gradients(layer, batches, grads, weights)
        grad_weights = flat.to(weights[0].dtype).split(layer.lines)
        return (
            *(None, None, None),
            *grad_gammas,
            *(grad.view(w.shape) for grad, w in zip(grad_weights, weights, strict=True)),
        )


def _gradients(
    layer: LayerWeights, batches: list[Batch], grads: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """∂L/∂γ of each matrix and ∂L/∂W of all, flat, of ∂L/∂Ŵ."""
    numbers = [number for number, _, _ in layer.shapes]
    flat = layer.flat(grads)
    lines = torch.bmm(flat.unsqueeze(1), layer.flat(weights).unsqueeze(2))  # (lines, 1, 1)
    inner = (layer.sums.to(flat.dtype) @ lines.view(-1)).view(-1, 1, 1)  # ⟨G, W⟩ of each
    quotients = torch._foreach_div(inner.split(numbers), [batch.sigma for batch in batches])
    pulls = torch._foreach_mul([batch.left for batch in batches], quotients)
    matrices = layer.matrices(flat)
    torch._foreach_mul_(matrices, [batch.scale for batch in batches])
    torch._foreach_addcmul_(matrices, pulls, [batch.right for batch in batches], value=-1)
    return [gamma for batch in quotients for gamma in batch.view(-1).unbind()], flat
