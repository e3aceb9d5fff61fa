"""Spectral norms of a whole model's weights, in a number of operations that ignores its depth."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import threshold

from sigma_fairseq.monitor.parts import Attention, Matrix
from sigma_fairseq.reparam import sigma_norms
from sigma_fairseq.reparam.effective_weight import EPSILON, at_least_fp32
from sigma_fairseq.reparam.singular_vectors import (
    KRYLOV_STEPS,
    leading_singular_triplet,
    random_vector,
)

#: Steps from the singular vectors found before, and the share of a random vector that is mixed in
#: so that a singular value which has overtaken the leading one is found.
WARM_STEPS = 2
WARM_NOISE = 0.1
#: Weights in one batch, and in a matrix that is worth copying into one to save operations.
BATCH_ELEMENTS = 2**25
SMALL_ELEMENTS = 2**19


def effective_scales(model: nn.Module) -> dict[int, Tensor]:
    """γ/σ, by which W has to be multiplied to be Ŵ: `id` of a `SigmaNorm` → scalar."""
    batches = defaultdict(list)
    scales = {}
    for norm, stack in sigma_norms(model):
        if len(norm.u) * len(norm.v) > SMALL_ELEMENTS:
            scales[id(norm)] = (norm.gamma / norm.sigma(*stack)).detach()
        else:
            batches[norm.u.shape, norm.v.shape].append((norm, stack))
    for batch in batches.values():
        rows = at_least_fp32(torch.cat([block.detach() for _, stack in batch for block in stack]))
        u = torch.stack([norm.u for norm, _ in batch])  # (n, rows)
        v = torch.stack([norm.v for norm, _ in batch])  # (n, columns)
        product = rows.view(len(batch), -1, rows.shape[1]) @ v.unsqueeze(-1)  # (n, rows, 1)
        gamma = torch.stack([norm.gamma.detach() for norm, _ in batch])
        scale = gamma / threshold((u * product.squeeze(-1)).sum(-1), EPSILON, 1.0)
        scales.update({id(norm): s for (norm, _), s in zip(batch, scale.unbind(), strict=True)})
    return scales


def _batch_size(elements: int) -> int:
    """How many matrices of so many elements are treated at a time."""
    return 1 if elements > SMALL_ELEMENTS else max(1, BATCH_ELEMENTS // elements)


def _stacked(weights: list[Tensor]) -> Tensor:
    """(n, rows, columns); without a copy where there is one."""
    return at_least_fp32(weights[0].unsqueeze(0) if len(weights) == 1 else torch.stack(weights))


class _WarmStart:
    """Start vectors that get better from one call to the next."""

    def __init__(self) -> None:
        self._found: dict[object, Tensor] = {}

    def begin(
        self, key: object, transposed: Callable[[Tensor], Tensor], rows: int, like: Tensor
    ) -> tuple[Tensor, int]:
        """Where to begin with the maps called `key`, (..., columns, 1), and the steps to take.

        Args:
            transposed: y ↦ Wᵀy.
            rows: of W.
            like: gives dtype and device.
        """
        if key not in self._found:
            return transposed(random_vector(rows, like)), KRYLOV_STEPS
        found = self._found[key].unsqueeze(-1)
        return found + WARM_NOISE * random_vector(found.shape[-2], like), WARM_STEPS

    def keep(self, key: object, v: Tensor) -> None:
        """Remembers the singular vectors (..., columns) for the next call."""
        self._found[key] = v


class SpectralNorms:
    """Measures again and again, each time from what it found before.

    Args:
        matrices: those to measure.
        attentions: those whose key-query products to measure.
    """

    def __init__(self, matrices: Sequence[Matrix], attentions: Sequence[Attention]) -> None:
        self._matrices = matrices
        self._warm = _WarmStart()
        shapes: dict[torch.Size, list[int]] = defaultdict(list)
        for index, matrix in enumerate(matrices):
            shapes[matrix.plain_weight().shape].append(index)
        self._batches = [
            indices[start : start + size]
            for shape, indices in shapes.items()
            for size in [_batch_size(shape.numel())]
            for start in range(0, len(indices), size)
        ]
        by_name = {matrix.name: matrix for matrix in matrices}
        self._products: dict[tuple[object, ...], list[tuple[int, Matrix, Matrix, int]]]
        self._products = defaultdict(list)
        for index, attention in enumerate(attentions):
            query, key = (by_name[f"{attention.name}.{name}"] for name in ("q_proj", "k_proj"))
            heads = attention.module.num_heads
            shapes_of = (heads, query.plain_weight().shape, key.plain_weight().shape)
            self._products[shapes_of].append((index, query, key, heads))

    @torch.no_grad()
    def weights(self, scales: dict[int, Tensor]) -> Tensor:
        """‖Ŵ‖₂ of every matrix, (M,). `scales`: of `effective_scales`."""
        norms: list[Tensor] = [torch.empty(0)] * len(self._matrices)
        for batch in self._batches:
            chosen = [self._matrices[index] for index in batch]
            weights = _stacked([matrix.plain_weight() for matrix in chosen])
            apply, transposed = weights.__matmul__, weights.mT.__matmul__
            start, steps = self._warm.begin(batch[0], transposed, weights.shape[-2], weights)
            _, found, v = leading_singular_triplet(apply, transposed, start, steps)
            self._warm.keep(batch[0], v)
            for index, norm in zip(batch, self._scaled(chosen, found, scales), strict=True):
                norms[index] = norm
        return torch.stack(norms)

    @torch.no_grad()
    def key_query(self, scales: dict[int, Tensor], heads: int) -> tuple[Tensor, Tensor]:
        """‖W_Kᵀ W_Q‖₂ and ‖W_Kᵀ b_Q‖₂ of every attention's heads, both (A, heads).

        Args:
            scales: of `effective_scales`.
            heads: columns of the result; NaN beyond an attention's heads.
        """
        count = sum(map(len, self._products.values()))
        first = next(iter(self._products.values()))[0][1].parameter()
        norms = first.new_full((count, heads), torch.nan, dtype=torch.float32)
        biases = norms.clone()
        for shapes, group in self._products.items():
            indices = [index for index, *_ in group]
            split = (len(group), group[0][3], -1)  # layers, heads, rows of a head
            queries = torch.stack([query.plain_weight() for _, query, _, _ in group])
            keys = torch.stack([key.plain_weight() for _, _, key, _ in group])
            query_scale = self._scale_of([query for _, query, _, _ in group], scales, norms)
            key_scale = self._scale_of([key for _, _, key, _ in group], scales, norms)
            query = at_least_fp32(queries).view(*split, queries.shape[-1])  # (n, H, d, inputs)
            key = at_least_fp32(keys).view(*split, keys.shape[-1])

            def apply(x: Tensor, query: Tensor = query, key: Tensor = key) -> Tensor:
                return key.mT @ (query @ x)

            def transposed(y: Tensor, query: Tensor = query, key: Tensor = key) -> Tensor:
                return query.mT @ (key @ y)

            start, steps = self._warm.begin(shapes, transposed, key.shape[-1], key)
            _, found, v = leading_singular_triplet(apply, transposed, start, steps)
            self._warm.keep(shapes, v)
            norms[indices, : split[1]] = found * (query_scale * key_scale).abs().unsqueeze(-1)
            bias = [query.module.bias for _, query, _, _ in group]
            if bias[0] is None:
                biases[indices, : split[1]] = 0
            else:
                stacked = at_least_fp32(torch.stack(bias)).view(*split, 1)
                length = torch.linalg.vector_norm(key.mT @ stacked, dim=(-2, -1))
                biases[indices, : split[1]] = length * key_scale.abs().unsqueeze(-1)
        return norms, biases

    def _scaled(
        self, chosen: Sequence[Matrix], norms: Tensor, scales: dict[int, Tensor]
    ) -> list[Tensor]:
        return list((norms * self._scale_of(chosen, scales, norms).abs()).unbind())

    @staticmethod
    def _scale_of(chosen: Sequence[Matrix], scales: dict[int, Tensor], like: Tensor) -> Tensor:
        one = like.new_ones(())
        return torch.stack([scales.get(id(matrix.sigma_norm()), one) for matrix in chosen])


@torch.no_grad()
def sigma_errors(model: nn.Module, matrices: Sequence[Matrix]) -> Tensor:
    """(σ - uᵀWv)/σ of every matrix under σReparam, (M,), by a full SVD; NaN for the others."""
    errors = {
        id(norm): 1
        - norm.sigma(*stack) / torch.linalg.matrix_norm(at_least_fp32(torch.cat(stack)), 2)
        for norm, stack in sigma_norms(model)
    }
    missing = next(model.parameters()).new_tensor(torch.nan, dtype=torch.float32)
    return torch.stack([errors.get(id(matrix.sigma_norm()), missing) for matrix in matrices])
