"""Leading singular vectors of one matrix from nothing, without an SVD of it."""

import torch
from torch import Tensor

#: Size of the Krylov space. On Gaussian 512 × 512 matrices, whose leading singular values lie
#: next to each other, σ comes out 1 to 2 % short; the power iteration of training does the rest.
KRYLOV_STEPS = 8


@torch.no_grad()
def leading_singular_vectors(matrix: Tensor, steps: int = KRYLOV_STEPS) -> tuple[Tensor, Tensor]:
    """Estimates the leading singular pair by Rayleigh-Ritz in the Krylov space of WᵀW.

    Exact to rounding when `steps` reaches the rank. The start vector has a seed of its own, so no
    random state is consumed and equal matrices give equal vectors.

    Args:
        matrix: W, (rows, columns), fp32 or fp64.
        steps: dimension of the Krylov space; each costs a product with W and one with Wᵀ.

    Returns:
        Unit vectors u (rows,) and v (columns,) with uᵀWv ≥ 0; arbitrary ones for a zero matrix.
    """
    rows, columns = matrix.shape
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(rows, generator=generator, dtype=matrix.dtype).to(matrix.device)
    vector = start @ matrix
    basis = matrix.new_zeros(min(steps, rows, columns), columns)  # orthonormal rows
    images = matrix.new_zeros(len(basis), rows)  # W times each of them
    for step in range(len(basis)):
        full = torch.linalg.vector_norm(vector)
        if step:
            vector = vector - (basis[:step] @ vector) @ basis[:step]
        length = torch.linalg.vector_norm(vector)
        if length <= 1e-5 * full:  # the space holds all there is; what is left is rounding
            basis, images = basis[:step], images[:step]
            break
        basis[step] = vector / length
        images[step] = matrix @ basis[step]
        vector = images[step] @ matrix
    if not images.any():
        return start / start.norm(), torch.ones_like(matrix[0]) / columns**0.5
    # The unit y that makes ‖W·basisᵀy‖ largest leads the images' Gram matrix.
    ritz = torch.linalg.eigh(images @ images.T).eigenvectors[:, -1]
    u, v = ritz @ images, ritz @ basis
    return u / torch.linalg.vector_norm(u), v / torch.linalg.vector_norm(v)
