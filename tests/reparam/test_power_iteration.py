"""σ and its singular vectors against a full SVD, and what power iteration costs."""

import pytest
import torch
from torch import Tensor, nn

from sigma_fairseq.reparam import (
    SigmaConv1d,
    SigmaLinear,
    convert,
    leading_singular_subspace,
    power_iteration,
    restore_vectors,
    sigma_norms,
)
from tests.conftest import CountOperations


def exact_sigma(matrix: Tensor) -> float:
    return float(torch.linalg.svdvals(matrix.detach().double())[0])


@pytest.mark.parametrize("shape", [(8, 8), (3, 8), (8, 3), (1, 7), (7, 1), (1, 1)])
def test_small_matrices_start_at_the_exact_pair(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(3)).double()
    u, v, _ = leading_singular_subspace(matrix)
    left, values, right = torch.linalg.svd(matrix)
    torch.testing.assert_close(u @ matrix @ v, values[0])
    torch.testing.assert_close((v @ right[0]).abs(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close((u @ left[:, 0]).abs(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("shape", [(256, 256), (1024, 256), (256, 1024)])
def test_large_gaussian_matrices_start_close(shape: tuple[int, int]) -> None:
    # The hardest case: the leading singular values of noise lie next to each other.
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1
    u, v, _ = leading_singular_subspace(matrix)
    ratio = float(u @ matrix @ v) / exact_sigma(matrix)
    assert 0.95 < ratio <= 1 + 1e-6


@pytest.mark.parametrize(
    "matrix",
    [
        torch.zeros(4, 6),
        torch.outer(torch.arange(4.0), torch.ones(6)),
        torch.eye(5) * 2,
        torch.full((4, 4), 1e-10),
    ],
    ids=["zero", "rank one", "repeated value", "tiny"],
)
def test_degenerate_matrices_have_unit_vectors(matrix: Tensor) -> None:
    u, v, _ = leading_singular_subspace(matrix)
    torch.testing.assert_close(torch.stack([u.norm(), v.norm()]), torch.ones(2))
    torch.testing.assert_close(u @ matrix @ v, torch.linalg.svdvals(matrix)[0])


def test_starting_consumes_no_random_state() -> None:
    state = torch.get_rng_state()
    leading_singular_subspace(torch.ones(5, 5))
    assert torch.equal(state, torch.get_rng_state())


def test_iterations_converge_to_the_svd() -> None:
    model = nn.Sequential(
        SigmaLinear(40, 40), SigmaLinear(40, 40), SigmaLinear(40, 17), SigmaConv1d(6, 5, 3)
    )
    power_iteration(model, steps=500)
    for norm, stack in sigma_norms(model):
        assert float(norm.sigma(*stack).detach()) == pytest.approx(
            exact_sigma(torch.cat(stack)), rel=1e-4
        )
        assert float(norm.u.norm()) == pytest.approx(1, rel=1e-5)
        assert float(norm.v.norm()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_weights_equals_each_by_itself(dtype: torch.dtype) -> None:
    """One step of subspace iteration, written with QR and SVD in float64, for each matrix."""
    torch.manual_seed(0)
    shapes = [(12, 9), (12, 9), (9, 12), (9, 12), (30, 30), (3, 20), (20, 3)]
    layers = [SigmaLinear(columns, rows, dtype=dtype) for rows, columns in shapes]
    wanted = []
    for layer in layers:
        norm, (weight,) = next(sigma_norms(layer))
        weight.data += 0.05 * torch.randn_like(weight)
        matrix = weight.detach().double()
        wide = len(matrix) < len(matrix.T)
        tall = matrix.T if wide else matrix
        images, values, _ = torch.linalg.svd(tall @ norm.subspace.double().T, full_matrices=False)
        images = images[:, values > 1e-4 * values[0]]
        left, sigma, right = torch.linalg.svd(images.T @ tall, full_matrices=False)
        u, v = images @ left[:, 0], right[0]
        wanted.append((v, u, sigma[0]) if wide else (u, v, sigma[0]))
    power_iteration(nn.ModuleList(layers))
    for layer, (u, v, sigma) in zip(layers, wanted, strict=True):
        norm, (weight,) = next(sigma_norms(layer))
        sign = torch.sign(norm.u.double() @ u)
        torch.testing.assert_close(norm.u.double() * sign, u, rtol=0, atol=2e-4)
        torch.testing.assert_close(norm.v.double() * sign, v, rtol=0, atol=2e-4)
        torch.testing.assert_close(norm.sigma(weight).double(), sigma, rtol=1e-5, atol=0)


def test_sigma_follows_a_weight_in_training() -> None:
    """A new direction rises within few updates; one vector alone would take it for noise."""
    layer = SigmaLinear(128, 128)
    norm, (weight,) = next(sigma_norms(layer))
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(128, generator=generator) for _ in range(2))
    power_iteration(layer, steps=20)
    for update in range(40):
        weight.data += 2e-3 * torch.outer(left, right)
        power_iteration(layer)
        if update % 8 == 7:
            assert float(norm.sigma(weight)) == pytest.approx(exact_sigma(weight), rel=0.01)


def test_a_joint_group_iterates_on_its_stack() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))

    model = convert(Attention(), qkv="qk")
    power_iteration(model, steps=500)
    found = {len(stack): (norm, stack) for norm, stack in sigma_norms(model)}
    assert set(found) == {1, 2}
    for norm, stack in found.values():
        assert float(norm.sigma(*stack).detach()) == pytest.approx(
            exact_sigma(torch.cat(stack)), rel=1e-4
        )


def test_a_zero_matrix_recovers_when_it_is_no_longer_zero() -> None:
    layer = SigmaLinear(5, 4)
    _, (weight,) = next(sigma_norms(layer))
    weight.data.zero_()
    power_iteration(layer)
    weight.data.copy_(torch.randn(4, 5))
    power_iteration(layer, steps=200)
    assert float(torch.linalg.matrix_norm(layer.weight, 2)) == pytest.approx(1, rel=1e-3)


def test_operations_do_not_grow_with_depth() -> None:
    counts = []
    for depth in (2, 20):
        model = nn.ModuleList(
            nn.ModuleList([SigmaLinear(8, 8), SigmaLinear(8, 16), SigmaLinear(16, 8)])
            for _ in range(depth)
        )
        with CountOperations() as counter:
            power_iteration(model)
        counts.append(counter.count)
    assert counts[0] == counts[1] <= 31


def test_a_model_without_sigma_is_left_alone() -> None:
    power_iteration(nn.Linear(3, 3))


@pytest.mark.parametrize(
    "matrix",
    [
        torch.outer(torch.arange(30.0), torch.ones(20)),
        torch.randn(40, 2) @ torch.randn(2, 30),
        torch.randn(40, 3) @ torch.randn(3, 30),
        torch.outer(torch.randn(40), torch.randn(30)) * 1e-6,
        torch.randn(64, 64) * torch.logspace(0, -12, 64),
        1 / (torch.arange(64.0)[:, None] + torch.arange(64.0) + 1),
        torch.randn(16, 16) * 1e-7,
        torch.randn(64, 64) * 1e6,
        torch.randn(1, 50),
        torch.eye(16) * 2,
    ],
    ids=[
        "rank 1",
        "rank 2",
        "rank 3",
        "tiny rank 1",
        "scaled",
        "Hilbert",
        "tiny",
        "huge",
        "one row",
        "repeated value",
    ],
)
def test_matrices_whose_vectors_depend_on_each_other(matrix: Tensor) -> None:
    layer = SigmaLinear(matrix.shape[1], matrix.shape[0])
    norm, (weight,) = next(sigma_norms(layer))
    weight.data.copy_(matrix)
    for _ in range(300):
        power_iteration(layer)
        assert torch.isfinite(norm.subspace).all()
    assert float(norm.sigma(weight)) == pytest.approx(exact_sigma(matrix), rel=1e-4)
    torch.testing.assert_close(torch.stack([norm.u.norm(), norm.v.norm()]), torch.ones(2))


def test_weights_that_are_no_numbers_end_no_training() -> None:
    """That is left to what watches the loss."""
    layers = nn.ModuleList([SigmaLinear(8, 8), SigmaLinear(8, 8)])
    (_, (broken,)), (norm, (weight,)) = sigma_norms(layers)
    broken.data[0, 0] = torch.nan
    power_iteration(layers)
    assert layers[0](torch.ones(8)).isnan().any()
    assert float(norm.sigma(weight)) == pytest.approx(exact_sigma(weight), rel=0.01)


def test_vectors_of_an_average_are_found_anew() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(SigmaLinear(30, 20), SigmaLinear(20, 8), nn.Linear(8, 2))
    (norm, (weight,)), (kept, _) = sigma_norms(model)
    before = [tensor.clone() for tensor in (*kept.state_dict().values(), norm.gamma, weight)]
    norm.u.add_(norm.u.roll(1)).div_(2)
    norm.v.neg_().add_(norm.v.roll(1)).div_(2)
    restore_vectors(model)
    assert float(norm.sigma(weight)) == pytest.approx(exact_sigma(weight), rel=1e-6)
    after = (*kept.state_dict().values(), norm.gamma, weight)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    restore_vectors(model[2])  # a model without any
