"""What our layers change in fairseq's: residuals, norms, initialisation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairseq.modules import MultiheadAttention
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sigma_fairseq.layers import deepnorm
from sigma_fairseq.layers.attention import DotProduct
from sigma_fairseq.reparam import sigma_norms
from sigma_fairseq.reparam.sigma_norm import original


@pytest.fixture
def wide(build: Callable[..., Any]) -> Callable[..., Any]:
    """Wide enough for the standard deviation of a weight to be measured."""

    def build_wide(architecture: str, **options: Any) -> Any:
        torch.manual_seed(0)
        return build(architecture, encoder_embed_dim=128, encoder_ffn_embed_dim=256, **options)

    return build_wide


def test_deepnorm_scales_the_residual(build: Callable[..., Any]) -> None:
    model = build("transformer_deepnorm_6l", dropout=0.0).eval()
    alpha = deepnorm.encoder_decoder(6, 6)[0].alpha
    layer = model.encoder.layers[0]
    x = torch.randn(5, 2, 16)
    attended = layer.self_attn(x, x, x, need_weights=False)[0]
    y = nn.functional.layer_norm(alpha * x + attended, [16])
    wanted = nn.functional.layer_norm(alpha * y + layer.fc2(layer.fc1(y).relu()), [16])
    torch.testing.assert_close(layer(x, None), wanted)


@pytest.mark.parametrize(
    ("architecture", "std"),
    [("transformer_deepnorm_6l", None), ("transformer_reparam_deepnorm_6l", 0.05)],
)
def test_beta_sets_the_size_of_the_right_weights(
    wide: Callable[..., Any], architecture: str, std: float | None
) -> None:
    model = wide(architecture, **({"reparam_init_std": std} if std else {}))
    constants = deepnorm.encoder_decoder(6, 6)
    for stack, (_, beta) in zip((model.encoder, model.decoder), constants, strict=True):
        for layer in stack.layers[:2]:
            gains = {"fc1": beta, "fc2": beta}
            for attention in ("self_attn", "encoder_attn"):
                if hasattr(layer, attention):
                    for name, gain in (("q", 1), ("k", 1), ("v", beta), ("out", beta)):
                        gains[f"{attention}.{name}_proj"] = gain
            for name, gain in gains.items():
                linear = layer.get_submodule(name)
                weight = original(linear, "weight") if std else linear.weight
                plain = std or (2 / sum(weight.shape)) ** 0.5  # Xavier's
                assert weight.std().item() == pytest.approx(gain * plain, rel=0.05), name


def test_sigma_draws_every_weight_and_zeroes_every_bias(wide: Callable[..., Any]) -> None:
    model = wide("transformer_reparam_postln_6l")
    for _, stack in sigma_norms(model):
        for weight in stack:
            assert weight.std().item() == pytest.approx(0.1, rel=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("proj.bias") or (".fc" in name and name.endswith("bias")):
            assert not parameter.any(), name
        assert torch.isfinite(parameter).all(), name


class Draws(TorchDispatchMode):
    """Counts the random numbers drawn inside it and names the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0
        self.operations: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.operations.add(name)
        if name in ("uniform_", "normal_"):
            self.numbers += args[0].numel()
        return func(*args, **(kwargs or {}))


def test_building_draws_every_weight_once_and_takes_no_svd(build: Callable[..., Any]) -> None:
    counts = {}
    for architecture in ("transformer_postln_6l", "transformer_reparam_deepnorm_6l"):
        with Draws() as draws:
            model = build(architecture, share_all_embeddings=True)
        counts[architecture] = draws.numbers
        assert not [name for name in draws.operations if "svd" in name]
    # fairseq itself draws the weights of attention twice, and biases.
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    tables = 2 * 24 * 16  # nn.Embedding draws, then fairseq does
    assert counts["transformer_reparam_deepnorm_6l"] == matrices + tables // 2 + 24 * 16
    assert counts["transformer_reparam_deepnorm_6l"] < counts["transformer_postln_6l"]


@pytest.mark.parametrize("architecture", ["transformer_postln_6l", "transformer_preln_6l"])
def test_plain_models_start_as_fairseqs(build: Callable[..., Any], architecture: str) -> None:
    preln = "preln" in architecture
    torch.manual_seed(0)
    ours = build(architecture)
    torch.manual_seed(0)
    theirs = build("transformer", encoder_normalize_before=preln, decoder_normalize_before=preln)
    assert ours.state_dict().keys() - {"options_version"} == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize(("qkv", "gammas"), [("separate", 16), ("qk", 13), ("qkv", 10)])
def test_grouping(build: Callable[..., Any], qkv: str, gammas: int) -> None:
    # One encoder layer: 4 projections + 2 linears; one decoder layer: 8 + 2.
    model = build(
        "transformer_reparam_deepnorm_6l", encoder_layers=1, decoder_layers=1, reparam_qkv=qkv
    )
    assert len(list(sigma_norms(model))) == gammas


def test_without_layernorm_there_is_none(build: Callable[..., Any]) -> None:
    model = build("transformer_reparam_noln_6l")
    assert not [m for m in model.modules() if isinstance(m, nn.LayerNorm)]


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_every_attention_goes_through_its_dot_product(
    build: Callable[..., Any], checkpoint_activations: bool
) -> None:
    """What a monitor's forward hook reads, in training: all six arguments, by position."""
    model = build("transformer_postln_6l", checkpoint_activations=checkpoint_activations).train()
    seen: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, DotProduct):
            module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: args}))
    tokens = torch.tensor([[5, 6, 7], [1, 8, 9]])  # 1 is padding
    model(tokens, tokens.ne(1).sum(1), tokens[:, 1:])
    attentions = [n for n, m in model.named_modules() if isinstance(m, MultiheadAttention)]
    assert list(seen) == [f"{name}.dot_product" for name in attentions]
    assert len(seen) == 18
    for query, key, value, mask, dropout, need_weights in seen.values():
        assert query.shape[:2] == key.shape[:2] == value.shape[:2] == (2, 4)
        assert mask is None or mask.dtype == query.dtype
        assert (dropout, need_weights.__class__) == (0.0, bool)


@pytest.mark.parametrize("cross_self_attention", [False, True])
def test_attentions_are_made_as_fairseqs(
    build: Callable[..., Any], cross_self_attention: bool
) -> None:
    options = {
        "attention_dropout": 0.3,
        "decoder_attention_heads": 2,
        "quant_noise_pq": 0.1,
        "quant_noise_pq_block_size": 4,
        "cross_self_attention": cross_self_attention,
        "no_cross_attention": cross_self_attention,
    }
    if not cross_self_attention:
        options["decoder_embed_dim"] = 24

    def attentions(architecture: str) -> dict[str, tuple[Any, ...]]:
        return {
            name: (
                *(module.embed_dim, module.kdim, module.vdim, module.num_heads),
                *(module.self_attention, module.encoder_decoder_attention),
                *(module.dropout_module.p, len(module.q_proj._forward_pre_hooks)),
            )
            for name, module in build(architecture, **options).named_modules()
            if isinstance(module, MultiheadAttention)
        }

    assert attentions("transformer_postln_6l") == attentions("transformer")


def test_qk_norm_starts_as_a_layernorm_and_stays_out_of_sigma(build: Callable[..., Any]) -> None:
    model = build("transformer_reparam_postln_6l", qk_norm=True)
    norms = [m for n, m in model.named_modules() if n.endswith(("q_norm", "k_norm"))]
    assert len(norms) == 2 * 18
    for norm in norms:
        assert norm.weight.eq(1).all() and norm.bias.eq(0).all()
    assert len(list(sigma_norms(model))) == 16 * 6
