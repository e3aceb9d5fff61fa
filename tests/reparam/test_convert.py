"""convert() and fuse() on models that are not ours."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sigma_fairseq.reparam import SigmaLinear, convert, fuse, power_iteration, sigma_norms

KINDS = ["sigma", "spectral_norm", "weight_norm"]
GROUPINGS = {"separate": 3, "qk": 2, "qkv": 1}


def encoder(layers: int = 2) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, layers).eval()


class Attention(nn.Module):
    """Projections named as in fairseq and torchscale."""

    def __init__(self, key_width: int = 8) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.k_proj = nn.Linear(key_width, 8)
        self.v_proj = nn.Linear(key_width, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.q_proj(x) * self.k_proj(x) + self.v_proj(x)


@pytest.mark.parametrize("qkv", GROUPINGS)
def test_a_converted_encoder_keeps_its_function(qkv: str) -> None:
    model, x = encoder(), torch.randn(3, 7, 32)
    with torch.no_grad():
        # The fused evaluation path of PyTorch and the plain one: both read `.weight`.
        plain = model(x)
        convert(model, gamma="sigma", qkv=qkv)
        torch.testing.assert_close(model(x), plain)
    torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-5)
    # In a layer: the blocks of the packed input projection, the output projection, two linears.
    assert len(list(sigma_norms(model))) == 2 * (GROUPINGS[qkv] + 3)


@pytest.mark.parametrize("qkv", GROUPINGS)
def test_the_packed_projection_has_unit_blocks(qkv: str) -> None:
    model = convert(nn.MultiheadAttention(16, 4), qkv=qkv)
    power_iteration(model, steps=300)
    sizes = {"separate": [16, 16, 16], "qk": [32, 16], "qkv": [48]}[qkv]
    blocks = model.in_proj_weight.detach().split(sizes)
    for block in blocks:
        assert float(torch.linalg.matrix_norm(block, 2)) == pytest.approx(1, rel=1e-3)


def test_attention_with_other_key_width_converts_its_separate_matrices() -> None:
    model = nn.MultiheadAttention(16, 4, kdim=12, vdim=12).eval()
    q, kv = torch.randn(5, 2, 16), torch.randn(6, 2, 12)
    before = model(q, kv, kv)[0]
    convert(model, gamma="sigma")
    assert len(list(sigma_norms(model))) == 4
    torch.testing.assert_close(model(q, kv, kv)[0], before)
    with pytest.raises(ValueError, match="share one σ need the same number of inputs"):
        convert(nn.MultiheadAttention(16, 4, kdim=12, vdim=12), qkv="qk")


@pytest.mark.parametrize("qkv", GROUPINGS)
def test_joint_groups_share_sigma_and_gamma(qkv: str) -> None:
    model, x = Attention(), torch.randn(4, 8)
    raw = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = model(x)
    kept = convert(copy.deepcopy(model), gamma="sigma", qkv=qkv)
    torch.testing.assert_close(kept(x), before)

    convert(model, qkv=qkv)
    assert len([k for k in model.state_dict() if k.endswith("gamma")]) == GROUPINGS[qkv]
    groups = {"separate": ["q", "k", "v"], "qk": ["qk", "v"], "qkv": ["qkv"]}[qkv]
    for group in groups:
        stack = torch.cat([raw[f"{name}_proj.weight"] for name in group])
        sigma = torch.linalg.svdvals(stack.double())[0].float()
        for name in group:
            weight = getattr(model, f"{name}_proj").weight
            torch.testing.assert_close(weight, raw[f"{name}_proj.weight"] / sigma)
    # Every member's gradient reaches every weight of its group.
    (gradient,) = torch.autograd.grad(
        model.q_proj.weight.sum(),
        model.k_proj.parametrizations.weight.original,
        allow_unused=True,
    )
    assert (gradient is None) == (qkv == "separate")


@pytest.mark.parametrize("qkv", GROUPINGS)
def test_a_copy_of_a_joint_group_is_independent(qkv: str) -> None:
    model, x = convert(Attention(), qkv=qkv), torch.randn(4, 8)
    before = model(x)
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data.mul_(1.5)
    power_iteration(twin)
    assert torch.equal(model(x), before)
    fuse(twin)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reparam", KINDS)
def test_fuse_gives_plain_layers_of_the_same_function(reparam: str, training: bool) -> None:
    model, x = convert(encoder(), reparam=reparam), torch.randn(3, 7, 32)
    before = model(x)
    fuse(model.train(training))
    assert model.training == training
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert type(model.layers[0].linear1) is nn.Linear
    assert set(model.state_dict()) == set(encoder().state_dict())
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model.eval()(x), before)


def test_fuse_turns_our_layers_into_plain_ones() -> None:
    model = nn.Sequential(SigmaLinear(4, 4), SigmaLinear(4, 4, bias=False))
    x = torch.randn(2, 4)
    before = model(x)
    assert fuse(model) is model
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]
    torch.testing.assert_close(model(x), before)
    fuse(model)  # nothing left to do


@pytest.mark.parametrize("reparam", KINDS)
def test_the_plain_weight_is_never_read(reparam: str) -> None:
    model = convert(encoder(1), reparam=reparam).eval()
    layer = model.layers[0]
    for weight in (layer.linear1.weight, layer.self_attn.out_proj.weight):
        assert not isinstance(weight, nn.Parameter)
    if reparam == "sigma":
        for norm, _ in sigma_norms(model):
            norm.gamma.data.zero_()  # the function must vanish with γ, whichever path computes it
        with torch.no_grad():
            out = layer.self_attn(*[torch.randn(2, 3, 32)] * 3)[0]
        torch.testing.assert_close(out, layer.self_attn.out_proj.bias.expand_as(out))


def test_a_filter_chooses_by_name_and_module() -> None:
    model = convert(encoder(), where=lambda name, module: name.endswith("linear2"))
    assert len(list(sigma_norms(model))) == 2
    assert parametrize.is_parametrized(model.layers[0].linear2)


def test_converting_twice_changes_nothing() -> None:
    model = convert(encoder())
    state = copy.deepcopy(model.state_dict())
    convert(model)
    assert state.keys() == model.state_dict().keys()


def test_a_tied_weight_stays_tied() -> None:
    class LanguageModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.hidden = nn.Embedding(9, 4), nn.Linear(4, 4)
            self.output = nn.Linear(4, 9, bias=False)
            self.output.weight = self.embed.weight

    model = convert(LanguageModel())
    assert model.output.weight is model.embed.weight
    assert parametrize.is_parametrized(model.hidden)
    with pytest.raises(ValueError, match=r"output\.weight is shared"):
        convert(LanguageModel(), where=lambda name, module: name == "output")


def test_unknown_and_contradictory_options_are_refused() -> None:
    for options, message in (
        ({"reparam": "sgima"}, "reparam: 'sgima' is not one of none, sigma"),
        ({"qkv": "kv"}, "qkv: 'kv' is not one of separate, qk, qkv"),
        ({"gamma": "2"}, "gamma: '2' is not one of one, sigma"),
        ({"reparam": "weight_norm", "qkv": "qk"}, "need reparam='sigma'"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(nn.Linear(2, 2), **options)


def test_training_a_converted_model_moves_gamma_and_follows_sigma() -> None:
    torch.manual_seed(0)
    model = convert(encoder(1)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    x, wanted = torch.randn(8, 5, 32), torch.randn(8, 5, 32)
    losses = []
    for _ in range(150):
        power_iteration(model)
        loss = (model(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for norm, stack in sigma_norms(model):
        exact = torch.linalg.svdvals(torch.cat(stack).detach().double())[0].item()
        # uᵀWv never exceeds σ; one step an update follows it from below.
        assert 0.7 * exact < norm.sigma(*stack).item() <= exact * (1 + 1e-6)
        assert norm.gamma.item() != 1


def test_the_method_needs_no_fairseq() -> None:
    code = (
        "import sys; sys.modules['fairseq'] = None\n"
        "from torch import nn\n"
        "from sigma_fairseq.reparam import convert, fuse, power_iteration\n"
        "model = convert(nn.Linear(3, 3)); power_iteration(model); fuse(model)\n"
        "assert not [m for m in sys.modules if m.startswith(('fairseq.', 'omegaconf'))]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("shape", [(64, 64), (100, 20), (7, 40), (1, 5)])
def test_what_is_converted_for_fine_tuning_stays_the_same(shape: tuple[int, int]) -> None:
    """A σ that power iteration went on to find larger would take Ŵ away from W."""
    layer = nn.Linear(shape[1], shape[0])
    weight = layer.weight.detach().clone()
    convert(layer, gamma="sigma")
    norm, _ = next(sigma_norms(layer))
    assert float(norm.gamma) == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)), rel=1e-6)
    for _ in range(20):
        power_iteration(layer)
        torch.testing.assert_close(layer.weight, weight, rtol=2e-5, atol=0)
