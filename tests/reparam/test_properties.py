"""Properties of σReparam, of matrices of every shape, rank, scale and dtype, against float64."""

import copy
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sigma_fairseq.reparam import (
    SigmaConv1d,
    SigmaLinear,
    convert,
    fuse,
    power_iteration,
    sigma_norms,
)
from sigma_fairseq.reparam.sigma_norm import original

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.half}
#: How far a figure may be off, in relation to it: by the rounding of its dtype, or, in fp64, by
#: what power iteration adds so that vectors that depend on each other have a Cholesky factor.
TOLERANCE = {"fp64": 2e-5, "fp32": 1e-4, "bf16": 1e-2, "fp16": 2e-3}
# Below and above 16 rows, the size of the subspace that power iteration works in.
SHAPES = [(1, 1), (1, 9), (9, 1), (2, 2), (5, 12), (12, 5), (16, 17), (20, 33), (33, 20), (24, 24)]
#: Powers of 10. Beyond them fp32 has no fourth powers of σ, or σ counts as 1.
LEAST, GREATEST = -6, 8
STEPS = 12

check = settings(derandomize=True, deadline=None, max_examples=60)
gammas = st.floats(0.125, 8, width=32)
scales = st.integers(LEAST, GREATEST).map(lambda exponent: 10.0**exponent)
dtypes = st.sampled_from(list(DTYPES))
wide = st.sampled_from(["fp64", "fp32"])
any_shape = st.sampled_from(SHAPES)


def of_singular_values(shape: tuple[int, int], values: Tensor, seed: int) -> Tensor:
    """A random matrix of these singular values, float64."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(values), generator=generator).double())[0]
        for size in shape
    )
    return left * values @ right.T


@st.composite
def matrices(
    draw: st.DrawFn, shapes: st.SearchStrategy[Any] = any_shape, largest: int | None = None
) -> Tensor:
    """Of σ = 1, of any rank from 1 on, the largest singular value once or several times."""
    shape = draw(shapes)
    rank = draw(st.integers(1, min(shape)))
    repeated = draw(st.integers(1, min(rank, largest or rank)))
    fall = draw(st.sampled_from([0.1, 0.5, 0.75]))
    values = torch.ones(rank, dtype=torch.float64)
    values[repeated:] = fall ** torch.arange(1, rank - repeated + 1)
    return of_singular_values(shape, values, draw(st.integers(0, 99)))


def converged(matrix: Tensor, gamma: float, dtype: str = "fp32", steps: int = STEPS) -> nn.Linear:
    """A converted linear layer of this weight, with σ found."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], dtype=DTYPES[dtype])
    layer.weight.data.copy_(matrix)
    convert(layer)
    set_gamma(layer, gamma)
    power_iteration(layer, steps)
    return layer


def set_gamma(model: nn.Module, gamma: float) -> None:
    for norm, _ in sigma_norms(model):
        norm.gamma.data.fill_(gamma)


def spectral_norm(matrix: Tensor) -> float:
    return float(torch.linalg.svdvals(matrix.detach().double())[0])


def assert_close(ours: Tensor, wanted: Tensor, tolerance: float) -> None:
    """As matrices: by the Frobenius norm of their difference."""
    ours, wanted = ours.detach().double(), wanted.detach().double()
    assert (ours - wanted).norm() <= tolerance * wanted.norm(), (ours, wanted)


@check
@given(matrices(), gammas, dtypes, st.integers(LEAST, GREATEST))
def test_sigma_of_the_effective_weight_is_gamma(
    matrix: Tensor, gamma: float, dtype: str, exponent: int
) -> None:
    # Every dtype but fp16 has the range of fp32.
    scale = 10.0 ** (max(-2, min(exponent, 3)) if dtype == "fp16" else exponent)
    layer = converged(matrix * scale, gamma, dtype)
    assert layer.weight.dtype == DTYPES[dtype]
    assert abs(spectral_norm(layer.weight) - gamma) <= TOLERANCE[dtype] * gamma
    raw = original(layer, "weight").double()
    assert_close(layer.weight, gamma / spectral_norm(raw) * raw, TOLERANCE[dtype])


@check
@given(matrices(), gammas, st.booleans())
def test_layers_of_our_own_have_it_too(matrix: Tensor, gamma: float, convolution: bool) -> None:
    rows, columns = matrix.shape
    layer = SigmaConv1d(columns, rows, 3) if convolution else SigmaLinear(columns, rows)
    weight = original(layer, "weight")
    weight.data.copy_(torch.stack([matrix] * 3, 2) if convolution else matrix)
    set_gamma(layer, gamma)
    power_iteration(layer, STEPS)
    assert abs(spectral_norm(layer.weight.flatten(1)) - gamma) <= 1e-4 * gamma


class Attention(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(columns, rows) for _ in range(3))


@check
@given(
    any_shape.flatmap(lambda shape: st.tuples(*[matrices(st.just(shape))] * 3)),
    gammas,
    st.sampled_from(["separate", "qk", "qkv"]),
    st.booleans(),
)
def test_groups_share_one_sigma(
    three: tuple[Tensor, ...], gamma: float, qkv: Any, packed: bool
) -> None:
    rows, columns = three[0].shape
    if packed:
        model: nn.Module = nn.MultiheadAttention(columns, 1)
        # Its matrix is (3·width, width): as many rows of each as there are.
        three = tuple(matrix.repeat(columns, 1)[:columns] for matrix in three)
        model.in_proj_weight.data.copy_(torch.cat(three))
    else:
        model = Attention(rows, columns)
        for name, matrix in zip("qkv", three, strict=True):
            model.get_submodule(f"{name}_proj").weight.data.copy_(matrix)
    convert(model, qkv=qkv)
    set_gamma(model, gamma)
    power_iteration(model, STEPS)
    if packed:
        effective = model.in_proj_weight.chunk(3)
    else:
        effective = tuple(model.get_submodule(f"{name}_proj").weight for name in "qkv")
    for members in {"separate": ["q", "k", "v"], "qk": ["qk", "v"], "qkv": ["qkv"]}[qkv]:
        group = ["qkv".index(name) for name in members]
        raw = torch.cat([three[index] for index in group])
        ours = torch.cat([effective[index] for index in group])
        assert_close(ours, gamma / spectral_norm(raw) * raw, 1e-3)


@check
@given(matrices(), gammas, scales, wide)
def test_the_scale_of_the_weight_cancels(
    matrix: Tensor, gamma: float, scale: float, dtype: str
) -> None:
    plain, scaled = (converged(each, gamma, dtype) for each in (matrix, matrix * scale))
    assert_close(scaled.weight, plain.weight, TOLERANCE[dtype])


@check
@given(matrices(), st.floats(-8, 8, width=16, allow_subnormal=False), scales, wide)
def test_the_effective_weight_is_linear_in_gamma(
    matrix: Tensor, gamma: float, scale: float, dtype: str
) -> None:
    layer = converged(matrix * scale, 1, dtype)
    unit = layer.weight.detach()
    set_gamma(layer, gamma)
    assert_close(layer.weight, gamma * unit, 1e-6)


def gradients(layer: nn.Linear, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂W and ∂L/∂γ of L = ⟨upstream, Ŵ⟩."""
    ((norm, _),) = sigma_norms(layer)
    inputs = (original(layer, "weight"), norm.gamma)
    loss = (layer.weight * upstream.to(layer.weight.dtype)).sum()
    weight, gamma = torch.autograd.grad(loss, inputs)
    return weight.double(), gamma.double()


def random_like(matrix: Tensor) -> Tensor:
    return torch.randn(matrix.shape, generator=torch.Generator().manual_seed(1)).double()


@check
@given(matrices(largest=1), gammas, scales, wide)
def test_the_gradient_is_that_of_the_singular_value(
    matrix: Tensor, gamma: float, scale: float, dtype: str
) -> None:
    """By autograd through the SVD, where the largest singular value is a simple one."""
    layer = converged(matrix * scale, gamma, dtype)
    upstream = random_like(matrix)
    raw = original(layer, "weight").detach().double().requires_grad_()
    factor = torch.tensor(gamma, dtype=torch.float64, requires_grad=True)
    loss = (factor / torch.linalg.svdvals(raw)[0] * raw * upstream).sum()
    wanted = torch.autograd.grad(loss, (raw, factor))
    ours = gradients(layer, upstream)
    # In relation to what is subtracted: of a single number nothing is left.
    whole = gamma / spectral_norm(raw) * upstream.norm()
    assert (ours[0] - wanted[0]).norm() <= 10 * TOLERANCE[dtype] * whole
    assert (ours[1] - wanted[1]).abs() <= TOLERANCE[dtype] * upstream.norm()


@check
@given(matrices(), gammas, scales, st.integers(0, 2))
def test_the_gradient_is_the_published_formula(
    matrix: Tensor, gamma: float, scale: float, steps: int
) -> None:
    """For the layer's own u and v, wherever power iteration is; along W it vanishes."""
    layer = converged(matrix * scale, gamma, steps=steps)
    upstream = random_like(matrix)
    ((norm, _),) = sigma_norms(layer)
    raw, u, v = (each.detach().double() for each in (original(layer, "weight"), norm.u, norm.v))
    sigma = u @ raw @ v
    inner = (upstream * raw).sum()
    wanted = gamma / sigma * (upstream - inner / sigma * torch.outer(u, v))
    weight, factor = gradients(layer, upstream)
    whole = gamma / sigma * upstream.norm()
    assert (weight - wanted).norm() <= 1e-5 * whole
    assert (factor - inner / sigma).abs() <= 1e-5 * upstream.norm()
    assert (weight * raw).sum().abs() <= 1e-5 * whole * raw.norm()


@check
@given(any_shape, gammas, dtypes)
def test_a_zero_matrix_has_sigma_one(shape: tuple[int, int], gamma: float, dtype: str) -> None:
    layer = converged(torch.zeros(shape), gamma, dtype)
    upstream = random_like(torch.zeros(shape))
    weight, factor = gradients(layer, upstream)
    assert not layer.weight.any() and factor == 0
    assert_close(weight, gamma * upstream, TOLERANCE[dtype])
    # It is no trap: the first update leads out of it.
    original(layer, "weight").data.copy_(upstream)
    power_iteration(layer, 2 * STEPS)
    assert abs(spectral_norm(layer.weight) - gamma) <= 10 * TOLERANCE[dtype] * gamma


@check
@given(matrices(), gammas, st.integers(-20, GREATEST), st.sampled_from(["fp64", "fp32", "bf16"]))
def test_everything_is_finite_at_every_scale(
    matrix: Tensor, gamma: float, exponent: int, dtype: str
) -> None:
    layer = converged(matrix * 10.0**exponent, gamma, dtype)
    results = [layer.weight, *gradients(layer, random_like(matrix)), *layer.buffers()]
    assert all(result.isfinite().all() for result in results)
    ((norm, stack),) = sigma_norms(layer)
    assert norm.sigma(*stack) > 0


@check
@given(matrices(), gammas, dtypes, st.sampled_from(["qk", "qkv"]))
def test_fusing_and_saving_keep_the_output(
    matrix: Tensor, gamma: float, dtype: str, qkv: Any
) -> None:
    def build() -> nn.Module:
        rows, columns = matrix.shape
        attention = Attention(rows, columns)
        model = nn.Sequential(nn.Linear(columns, rows), attention.q_proj)
        model.attention = attention
        return convert(model.to(DTYPES[dtype]), qkv=qkv)

    model = build()
    for name, parameter in model.named_parameters():
        if name.endswith("original"):
            parameter.data.copy_(matrix)
    set_gamma(model, gamma)
    power_iteration(model, 2)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    x = torch.randn(3, matrix.shape[1], dtype=DTYPES[dtype])

    def outputs(of: nn.Module) -> list[Tensor]:
        found = [module for module in of.modules() if isinstance(module, nn.Linear)]
        assert len(found) == len(layers) == 4
        return [layer(x) for layer in found]

    other = build()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    fused = fuse(copy.deepcopy(model))
    for ours, loaded, plain in zip(*map(outputs, (model, other, fused)), strict=True):
        assert torch.equal(ours, loaded)
        assert torch.equal(ours, plain)
    power_iteration(model)
    power_iteration(other)
    for ours, loaded in zip(outputs(model), outputs(other), strict=True):
        assert torch.equal(ours, loaded)


@check
@given(st.lists(matrices(largest=1), min_size=2, max_size=6), wide)
def test_weights_in_a_batch_are_iterated_as_each_by_itself(
    several: list[Tensor], dtype: str
) -> None:
    together = nn.ModuleList(converged(matrix, 1, dtype, steps=0) for matrix in several)
    apart = copy.deepcopy(together)
    power_iteration(together, 2)
    for layer in apart:
        power_iteration(layer, 2)
    for (norm, _), (other, _) in zip(sigma_norms(together), sigma_norms(apart), strict=True):
        assert_close(torch.outer(norm.u, norm.v), torch.outer(other.u, other.v), 1e-3)
    for layer, other in zip(together, apart, strict=True):
        assert_close(layer.weight, other.weight, TOLERANCE[dtype])
