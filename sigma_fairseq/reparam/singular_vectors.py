"""Leading singular vectors of one matrix from nothing, without an SVD of it."""

import torch
from torch import Tensor

#: Size of the Krylov space. On Gaussian 512 × 512 matrices, whose leading singular values lie
#: close together, it leaves σ about 0.5 % short; the power iteration of training does the rest.
KRYLOV_STEPS = 10


@torch.no_grad()
def leading_singular_vectors(matrix: Tensor, steps: int = KRYLOV_STEPS) -> tuple[Tensor, Tensor]:
    """Estimates the leading singular pair by Rayleigh-Ritz in the Krylov space of WᵀW.

    Exact (to rounding) when `steps` reaches the smaller dimension; the start vector has a seed of
    its own, so no random state is consumed and equal matrices give equal vectors.

    Args:
        matrix: W, (rows, columns), fp32 or fp64.
        steps: dimension of the Krylov space: one product with W and one with Wᵀ each.

    Returns:
        Unit vectors u (rows,) and v (columns,) with uᵀWv ≥ 0. For a zero matrix any unit vectors.
    """
    rows, columns = matrix.shape
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(columns, generator=generator, dtype=matrix.dtype).to(matrix.device)
    start_u = torch.randn(rows, generator=generator, dtype=matrix.dtype).to(matrix.device)
    steps = min(steps, columns)
    basis = matrix.new_zeros(steps, columns)  # orthonormal rows
    images = matrix.new_zeros(steps, rows)  # W times each of them
    for step in range(steps):
        if step:
            vector = vector - (basis[:step] @ vector) @ basis[:step]
        length = torch.linalg.vector_norm(vector)
        basis[step] = vector / length.clamp(min=torch.finfo(matrix.dtype).tiny)
        images[step] = matrix @ basis[step]
        vector = images[step] @ matrix
    # ‖W·(yᵀbasis)‖ is largest for the leading eigenvector y of the images' Gram matrix.
    ritz = torch.linalg.eigh(images @ images.T).eigenvectors[:, -1]
    u, v = ritz @ images, ritz @ basis
    u = u if u.any() else start_u
    return u / torch.linalg.vector_norm(u), v / torch.linalg.vector_norm(v)
