"""Refreshes σ, u and v of a whole model, in batches of weights of equal shape."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import threshold

from sigma_fairseq.reparam.effective_weight import EPSILON, at_least_fp32
from sigma_fairseq.reparam.layer_weights import Batch, LayerWeights
from sigma_fairseq.reparam.sigma_norm import SigmaNorm, Stack, sigma_stacks
from sigma_fairseq.reparam.singular_vectors import SUBSPACE

#: What a subspace keeps of itself in a step, so that it outlives a time of zero weights.
KEPT = 1e-17
#: What the square of the length of a vector's image is taken for more than it is. `KEPT` over its
#: root is the σ of zero weights, which is below `EPSILON`.
FLOOR = 1e-18
#: By what share vectors in a subspace's image are taken for less alike than they are: those that
#: depend on each other would otherwise have no Cholesky factor. It is more than fp32 rounds by.
DEPENDENT = 1e-5
#: How many sharded weights are gathered at a time.
GATHERED = 16

#: By shape and whether they are sharded: groups of weights.
_ByShape = dict[Any, list[list[tuple[SigmaNorm, Stack]]]]


class _EqualShapes:
    """σReparam matrices of one shape, wide ones transposed, so that none is wide.

    Attributes:
        norms: whose matrices they are.
        u, v: leading singular vectors, (n, rows) and (n, columns), rows ≥ columns.
        sigma: uᵀWv, (n, 1, 1).
    """

    u: Tensor
    v: Tensor
    sigma: Tensor

    def __init__(self, members: Sequence[tuple[SigmaNorm, Stack]]) -> None:
        self.norms = [norm for norm, _ in members]
        self.stacks = [stack for _, stack in members]
        self.wide = [len(norm.u) < len(norm.v) for norm in self.norms]
        #: Numbers of consecutive matrices that layers want to be told of together.
        self.runs: list[int] = []

    def matrices(self) -> Tensor:
        """The weights, in fp32 or wider, (n, rows, columns)."""
        blocks: list[Tensor] = []
        for stack, wide in zip(self.stacks, self.wide, strict=True):
            parts = stack.read()
            blocks += [torch.cat(parts).mT if len(parts) > 1 else parts[0].mT] if wide else parts
        flat = at_least_fp32(torch.cat(blocks))
        return flat.view(len(self.norms), -1, flat.shape[1])

    def buffers(self) -> tuple[list[Tensor], list[Tensor]]:
        """The norms' own u and v, exchanged where a matrix is transposed."""
        pairs = zip(self.norms, self.wide, strict=True)
        both = [(norm.v, norm.u) if wide else (norm.u, norm.v) for norm, wide in pairs]
        return [u for u, _ in both], [v for _, v in both]

    def multiply(self) -> tuple[Tensor, Tensor]:
        """The subspaces times Wᵀ and times WᵀW, (n, dimension, rows) and (…, columns)."""
        subspace = torch.stack([norm.subspace for norm in self.norms])
        matrices = self.matrices()
        images = torch.bmm(subspace, matrices.mT)
        backs = torch.baddbmm(subspace, images, matrices, beta=KEPT)
        return images, backs

    def batches(self, scale: Tensor, scaled_u: Tensor) -> Iterator[Batch]:
        """What `LayerWeights` are told, one run after the other, each all wide or none of it."""
        rest = len(self.norms) - sum(self.runs)
        ends = accumulate(self.runs)
        parts = (
            part.split([*self.runs, rest])
            for part in (self.sigma, scale, scaled_u.unsqueeze(2), self.v.unsqueeze(2))
        )
        for end, sigma, factor, u, v in zip(ends, *parts, strict=False):
            left, right = (v, u) if self.wide[end - 1] else (u, v)
            yield Batch(sigma, factor, left, right.mT)


@cache
def _regular(device: torch.device) -> tuple[Tensor, Tensor]:
    """What a Gram matrix is multiplied by and what is added to it, (dimension, dimension)."""
    unit = torch.eye(SUBSPACE, dtype=torch.float64, device=device)
    return unit + (1 - unit) * (1 - DEPENDENT), unit * FLOOR


def _ritz(grams: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Rayleigh-Ritz: the combinations c of rows of Y, ‖cY‖ = 1, at which ‖cYW‖ is stationary.

    Args:
        grams: YYᵀ of every matrix, (n, dimension, dimension), fp64: they are squares of what may be
            small, and LAPACK finds no eigenvalues of a matrix near the end of fp32's range.
        images: ZZᵀ with Z = YW, fp64.

    Returns:
        The combinations in rows, (n, dimension, dimension), that of the largest ‖cZ‖ last, and this
        ‖cZ‖, (n, 1, 1).
    """
    factors, floor = _regular(grams.device)
    factor, _ = torch.linalg.cholesky_ex(torch.addcmul(floor, grams, factors))
    half = torch.linalg.solve_triangular(factor, images, upper=False)
    quotient = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    # A training that has gone astray is told by its loss, not by a matrix that has no eigenvalues.
    squares, vectors = torch.linalg.eigh(quotient.nan_to_num(0, 0, 0))
    rows = torch.linalg.solve_triangular(factor.mT, vectors, upper=True).mT
    return rows, squares[:, -1:, None].sqrt()


def _iterate(groups: Sequence[_EqualShapes]) -> None:
    """One step for every group, after which their norms have the new vectors."""
    images, backs = zip(*(group.multiply() for group in groups), strict=True)
    grams = torch.cat([torch.bmm(vectors, vectors.mT) for vectors in (*images, *backs)])
    dtype = grams.dtype
    combinations, sigmas = (found.to(dtype) for found in _ritz(*grams.double().chunk(2)))
    # All by the length of the leading one: a matrix of lower rank has others that are rounding.
    rotations = combinations / sigmas
    sizes = [len(group.norms) for group in groups]
    old: list[Tensor] = []
    new: list[Tensor] = []
    for group, image, back, leading, rotation, sigma in zip(
        groups,
        images,
        backs,
        combinations[:, -1:].split(sizes),
        rotations.split(sizes),
        threshold(sigmas, EPSILON, 1.0).split(sizes),
        strict=True,
    ):
        subspace = torch.bmm(rotation, back)
        group.u, group.v, group.sigma = torch.bmm(leading, image).squeeze(1), subspace[:, -1], sigma
        u, v = group.buffers()
        old += [*u, *v, *(norm.subspace for norm in group.norms)]
        new += [*group.u.unbind(), *group.v.unbind(), *subspace.unbind()]
    torch._foreach_copy_(old, new)


class PowerIteration:
    """`power_iteration` of one model, found out once and done at each update.

    It holds until weights are converted, fused, or moved to another device or dtype.

    Args:
        model: any module; one without σReparam weights is left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, LayerWeights)]
        ordered = [norm for layer in layers for norm in layer.norms]
        place = {id(norm): number for number, norm in enumerate(ordered)}
        # A layer's next to each other: what it is told of are then runs.
        found = sorted(sigma_stacks(model), key=lambda item: place.get(id(item[0]), len(place)))
        kinds: dict[tuple[torch.device, torch.dtype], _ByShape] = {}
        for norm, stack in found:
            by_shape = kinds.setdefault((norm.u.device, norm.u.dtype), {})
            shape = min(norm.u.shape, norm.v.shape), max(norm.u.shape, norm.v.shape)
            alike = by_shape.setdefault((shape, stack.sharded), [[]])
            if stack.sharded and len(alike[-1]) == GATHERED:
                alike.append([])
            alike[-1].append((norm, stack))
        #: For each device: its groups, and layers with the group of each of their batches.
        self._work: list[tuple[list[_EqualShapes], list[tuple[LayerWeights, list[int]]]]] = []
        for by_shape in kinds.values():
            groups = [_EqualShapes(members) for alike in by_shape.values() for members in alike]
            group_of = {
                id(norm): number for number, group in enumerate(groups) for norm in group.norms
            }
            here = [layer for layer in layers if id(layer.norms[0]) in group_of]
            told = []
            for layer in here:
                firsts = accumulate((count for count, _, _ in layer.shapes[:-1]), initial=0)
                numbers = [group_of[id(layer.norms[first])] for first in firsts]
                for number, (count, _, _) in zip(numbers, layer.shapes, strict=True):
                    groups[number].runs.append(count)
                told.append((layer, numbers))
            self._work.append((groups, told))

    @torch.no_grad()
    def step(self) -> None:
        """One step, after which layers know σ of their weights."""
        for groups, told in self._work:
            with torch.autocast(device_type=groups[0].norms[0].u.device.type, enabled=False):
                _iterate(groups)
                if told:
                    _tell(groups, told)


def _tell(
    groups: Sequence[_EqualShapes], told: Sequence[tuple[LayerWeights, Sequence[int]]]
) -> None:
    """Tells layers what holds for their weights."""
    gammas = torch.stack([norm.gamma for group in groups for norm in group.norms]).view(-1, 1, 1)
    scales = torch._foreach_div(
        gammas.split([len(group.norms) for group in groups]), [group.sigma for group in groups]
    )
    scaled_u = torch._foreach_mul([group.u for group in groups], [scale[:, 0] for scale in scales])
    batches = [
        group.batches(scale, u) for group, scale, u in zip(groups, scales, scaled_u, strict=True)
    ]
    for layer, numbers in told:
        layer.prepare([next(batches[number]) for number in numbers])


def power_iteration(model: nn.Module, steps: int = 1) -> None:
    """Refreshes u and v of every σReparam weight by a step of block power iteration.

    Algorithm 1 iterates one vector a weight: v ← Wᵀu/‖Wᵀu‖, u ← Wv/‖Wv‖. That follows a weight
    in training late, σ by as much as a fifth (docs/performance.md). Here a subspace is iterated
    with it, V ← WᵀWV, of which u and v are the leading Ritz vectors: W is read as often, and σ is
    right to less than a hundredth.

    Call it once an optimizer update, before the forward pass, in training only. Weights of equal
    shape are treated as one batch, so the number of operations does not grow with depth. The
    fairseq models of this package do it themselves when fairseq announces an update.

    Args:
        model: any module; one without σReparam weights is left alone.
        steps: iterations; the paper uses one an update.
    """
    iteration = PowerIteration(model)
    for _ in range(steps):
        iteration.step()
