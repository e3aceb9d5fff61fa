"""All weights of a layer from one node, against one node a weight."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma_fairseq.reparam import LayerWeights, Pack, convert, fuse, power_iteration, sigma_norms
from tests.conftest import CountOperations

GROUPINGS = ["separate", "qk", "qkv"]


class Block(nn.Module):
    """What a transformer layer reads of its weights: packed projections, wide and tall matrices."""

    def __init__(self, qkv: Any = "separate", bias: bool = True) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8, bias=bias) for _ in range(3))
        self.out_proj = nn.Linear(8, 8)
        self.fc1, self.fc2 = nn.Linear(8, 24), nn.Linear(24, 8)
        convert(self, qkv=qkv)
        self.pack = Pack(self, "q_proj", "k_proj", "v_proj")
        others = [Pack(self, name) for name in ("out_proj", "fc1", "fc2")]
        self.layer_weights: LayerWeights | None = LayerWeights([self.pack, *others])

    def forward(self, x: Tensor) -> Tensor:
        if self.layer_weights is None:
            return self.read(x)
        with self.layer_weights.handed_out():
            return self.read(x)

    def read(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.pack.weight(), self.pack.bias()).chunk(3, -1)
        return self.fc2(self.fc1(self.out_proj(q.tanh() * k + v)).tanh())


def block(qkv: str = "separate", **options: Any) -> Block:
    """In float64, with every γ its own, and singular vectors that are not yet the weights'."""
    torch.manual_seed(0)
    made = Block(qkv, **options).double()
    with torch.no_grad():
        for place, (norm, stack) in enumerate(sigma_norms(made)):
            norm.gamma.fill_(0.5 + 0.2 * place)
            for matrix in stack:
                matrix.add_(0.1 * torch.randn_like(matrix))
    return made


def gradients(module: nn.Module, run: Callable[[Tensor], Tensor]) -> tuple[Tensor, dict[str, Any]]:
    module.zero_grad()
    x = torch.linspace(-1, 1, 40, dtype=torch.float64).view(5, 8)
    output = run(x)
    output.square().sum().backward()
    return output, {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("qkv", GROUPINGS)
def test_one_node_equals_one_a_weight(qkv: str, prepared: bool, bias: bool) -> None:
    module = block(qkv, bias=bias)
    if prepared:
        power_iteration(module)
    output, found = gradients(module, module)
    expected, wanted = gradients(module, module.read)
    torch.testing.assert_close(output, expected)
    assert all(value is not None for value in wanted.values())
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("qkv", GROUPINGS)
def test_second_derivatives(qkv: str) -> None:
    module = block(qkv)
    power_iteration(module)
    x = torch.linspace(-1, 1, 40, dtype=torch.float64).view(5, 8)
    parameters = list(module.parameters())
    products = []
    for run in (module, module.read):
        loss = run(x).square().sum()
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        along = sum((grad * grad.detach().cos()).sum() for grad in grads)
        products.append(torch.autograd.grad(along, parameters))
    torch.testing.assert_close(*products)


@pytest.mark.parametrize("change", ["in place", "replaced", "gamma"])
def test_a_changed_weight_has_its_own_sigma(change: str) -> None:
    module = block()
    power_iteration(module)
    norm, (weight,) = next(sigma_norms(module))
    with torch.no_grad():
        if change == "in place":
            weight.mul_(2)
        elif change == "gamma":
            norm.gamma.mul_(2)
        else:
            weight.data = weight * torch.linspace(0.5, 2, 8, dtype=torch.float64)
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(module(x), module.read(x))


def test_evaluation_does_not_trust_what_training_left() -> None:
    module = block().eval()
    power_iteration(module)
    _, (weight,) = next(sigma_norms(module))
    weight.data.mul_(torch.linspace(0.5, 2, 8, dtype=torch.float64))  # no trace of this is left
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(module(x), module.read(x))


def test_autocast_gets_the_fp32_product_rounded_once() -> None:
    module = block().float()
    power_iteration(module)
    assert module.layer_weights is not None
    wanted = {name: child.weight for name, child in module.named_children() if "proj" in name}
    with torch.autocast("cpu", torch.bfloat16), module.layer_weights.handed_out():
        packed = module.pack.weight()
        out = module.out_proj.weight
    assert packed.dtype == out.dtype == torch.bfloat16
    joined = torch.cat([wanted[name] for name in ("q_proj", "k_proj", "v_proj")])
    # γ/σ is rounded otherwise than σ by itself: the last bit of a few.
    assert (packed != joined.bfloat16()).double().mean() < 0.01
    torch.testing.assert_close(packed, joined.bfloat16(), rtol=0.008, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(3, 8)).square().sum().backward()
    assert {parameter.grad.dtype for parameter in module.parameters()} == {torch.float32}


def test_half_weights_are_multiplied_in_fp32() -> None:
    module = block().float().bfloat16()
    power_iteration(module)
    assert module.layer_weights is not None
    with module.layer_weights.handed_out():
        handed = module.fc1.weight
    original = module.fc1.parametrizations.weight.original
    norm = module.fc1.parametrizations.weight[0]
    assert norm.gamma.dtype == norm.u.dtype == norm.subspace.dtype == torch.float32
    sigma = norm.u @ original.float() @ norm.v
    wanted = (original.float() * (norm.gamma / sigma)).bfloat16()
    assert handed.dtype == torch.bfloat16
    torch.testing.assert_close(handed, wanted)
    module(torch.randn(3, 8, dtype=torch.bfloat16)).sum().backward()
    assert original.grad.dtype == torch.bfloat16
    assert norm.gamma.grad.dtype == torch.float32


def test_nothing_stays_handed_out() -> None:
    module = block()
    power_iteration(module)
    assert module.layer_weights is not None
    outside = module.fc1.weight
    with pytest.raises(RuntimeError, match="inside"), module.layer_weights.handed_out():
        assert module.fc1.weight is module.fc1.weight
        raise RuntimeError("inside")
    assert module.fc1.weight is not outside
    assert module.fc1.parametrizations.weight[0].handed is None


def test_copies_and_fused_models_compute_the_same() -> None:
    module = block().eval()
    x = torch.randn(3, 8, dtype=torch.float64)
    expected = module(x)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(x), expected)
    fuse(twin)
    assert twin.layer_weights is None
    assert not [name for name in twin.state_dict() if "parametrizations" in name]
    torch.testing.assert_close(twin(x), expected)
    twin.pack.freeze()
    torch.testing.assert_close(twin(x), expected)
    assert twin.pack.weight() is twin.pack.weight()
    twin.float()  # as models from fairseq's hub are cast and moved, when they are frozen already
    torch.testing.assert_close(twin(x.float()), expected.float())
    assert twin.pack.weight().dtype == torch.float32


def test_operations_of_a_layer() -> None:
    module = block()
    power_iteration(module)
    assert module.layer_weights is not None
    with CountOperations() as forward, module.layer_weights.handed_out():
        singles = [getattr(module, name).weight for name in ("out_proj", "fc1", "fc2")]
        weights = [module.pack.weight(), *singles]
    grads = [torch.ones_like(weight) for weight in weights]
    with CountOperations() as backward:
        torch.autograd.backward(weights, grads)
    assert len(forward.names) == 2, forward.names
    assert len(backward.names) == 8, backward.names
