"""convert() and fuse() on torchscale's models, and our DeepNorm layers against torchscale's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchscale.architecture.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from torchscale.architecture.decoder import Decoder
from torchscale.architecture.encoder import Encoder
from torchscale.architecture.encoder_decoder import EncoderDecoder
from torchscale.component.embedding import TextEmbedding

from sigma_fairseq.layers import deepnorm
from sigma_fairseq.reparam import convert, fuse, power_iteration, sigma_norms

WORDS, WIDTH = 11, 16
SIZES = {
    "vocab_size": WORDS,
    "dropout": 0.0,
    **{f"{stack}_embed_dim": WIDTH for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_embed_dim": 32 for stack in ("encoder", "decoder")},
    **{f"{stack}_attention_heads": 4 for stack in ("encoder", "decoder")},
    **{f"{stack}_layers": 2 for stack in ("encoder", "decoder")},
}
NORMS: dict[str, dict[str, bool]] = {
    "deepnorm": {"deepnorm": True, "subln": False},
    "subln": {"subln": True},
    "preln": {"subln": False},
    "postln": {
        "subln": False,
        "encoder_normalize_before": False,
        "decoder_normalize_before": False,
    },
}
SOURCE = torch.randint(WORDS, (3, 7), generator=torch.Generator().manual_seed(0))
TARGET = torch.randint(WORDS, (3, 5), generator=torch.Generator().manual_seed(1))


def build_encoder(**options: Any) -> nn.Module:
    return Encoder(EncoderConfig(**SIZES, **options), TextEmbedding(WORDS, WIDTH))


def build_decoder(**options: Any) -> nn.Module:
    return Decoder(DecoderConfig(**SIZES, **options), TextEmbedding(WORDS, WIDTH))


def build_encoder_decoder(**options: Any) -> nn.Module:
    """With one matrix for both embeddings and the output."""
    config = EncoderDecoderConfig(**SIZES, share_all_embeddings=True, **options)
    return EncoderDecoder(config, TextEmbedding(WORDS, WIDTH))


# Which model → how to build it, how to run it, its attentions.
MODELS: dict[str, tuple[Callable[..., nn.Module], Callable[[nn.Module], Tensor], int]] = {
    "encoder": (build_encoder, lambda model: model(SOURCE)["encoder_out"], 2),
    "decoder": (build_decoder, lambda model: model(TARGET)[0], 2),
    "encoder-decoder": (build_encoder_decoder, lambda model: model(SOURCE, TARGET)[0], 6),
}


def weights(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer whose weight is no embedding's."""
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(module.weight is table for table in tables)
    }


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_converted_model_computes_the_same(kind: str, norm: str) -> None:
    build, run, attentions = MODELS[kind]
    torch.manual_seed(0)
    model = build(**NORMS[norm])
    linears = weights(model)
    assert len(linears) >= 6 * 2
    plain = run(model)
    plain.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.dim() == 1}

    model.zero_grad()
    convert(model, gamma="sigma", qkv="qk")
    assert all(parametrize.is_parametrized(linear, "weight") for linear in linears.values())
    assert len(list(sigma_norms(model))) == len(linears) - attentions  # q and k share one
    output = run(model)
    torch.testing.assert_close(output, plain, rtol=1e-4, atol=1e-5)
    output.square().sum().backward()
    for name, parameter in model.named_parameters():
        if name in gradients:  # biases and LayerNorms, from the first layer to the last
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-4)
        elif "parametrizations" in name:
            assert parameter.grad.isfinite().all(), name

    power_iteration(model)
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    power_iteration(model)
    trained = run(model.eval())
    assert (trained - output).abs().max() > 1e-3
    fuse(model)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    torch.testing.assert_close(run(model), trained, rtol=1e-4, atol=1e-5)
    fused = build(**NORMS[norm])
    fused.load_state_dict(model.state_dict())
    torch.testing.assert_close(run(fused.eval()), trained, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("qkv", ["separate", "qk", "qkv"])
@pytest.mark.parametrize("kind", MODELS)
def test_singular_values_of_a_converted_model(kind: str, qkv: str) -> None:
    model = MODELS[kind][0](deepnorm=True)
    originals = {name: linear.weight.detach().double() for name, linear in weights(model).items()}
    convert(model, qkv=qkv)
    power_iteration(model, steps=50)
    gammas = iter(torch.linspace(0.5, 2, 99).tolist())
    for norm, _ in sigma_norms(model):
        norm.gamma.data.fill_(next(gammas))
    effective = {name: model.get_submodule(name).weight.double() for name in originals}
    joint = {"separate": [], "qk": ["q_proj", "k_proj"], "qkv": ["q_proj", "k_proj", "v_proj"]}[qkv]
    groups: dict[str, list[str]] = {}
    for name in originals:
        attention, _, projection = name.rpartition(".")
        groups.setdefault(attention if projection in joint else name, []).append(name)
    norms = {id(norm): norm for norm, _ in sigma_norms(model)}
    assert len(groups) == len(norms)
    values = []
    for names in groups.values():
        stack = torch.cat([effective[name] for name in names])
        before = torch.cat([originals[name] for name in names])
        values.append(torch.linalg.matrix_norm(stack, 2).item())
        # Nothing but the scale has changed.
        scaled = before * (values[-1] / torch.linalg.matrix_norm(before, 2))
        torch.testing.assert_close(stack, scaled, rtol=1e-4, atol=1e-6)
    wanted = [norm.gamma.item() for norm in norms.values()]
    assert sorted(values) == pytest.approx(sorted(wanted), rel=1e-4)


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Gives a layer of torchscale the weights of one of ours; biases that ours lacks become 0."""
    state = {name.replace("fc", "ffn.fc"): value for name, value in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    for name in missing:
        assert name.endswith(".bias")
        theirs.get_parameter(name).data.zero_()


def compare(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], length: int
) -> None:
    """Output and gradient of both, of which ours has time before the batch."""
    torch.manual_seed(1)
    x = torch.randn(3, length, WIDTH, requires_grad=True)
    upstream = torch.randn(3, length, WIDTH)
    mine, other = ours(x.transpose(0, 1)).transpose(0, 1), theirs(x)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(y, x, upstream)[0] for y in (mine, other)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


# The last two keys of the second sentence are padding.
PADDED = torch.zeros(3, 7, dtype=torch.bool).index_fill(1, torch.tensor([5, 6]), True)
PADDED[0] = PADDED[2] = False
FUTURE = torch.full((5, 5), float("-inf")).triu(1)


def of_torchscale(kind: str, **options: Any) -> nn.Module:
    build = {"encoder": build_encoder, "decoder": build_decoder, "both": build_encoder_decoder}
    return build[kind](deepnorm=True, activation_fn="relu", **options).eval()


@pytest.mark.parametrize(("encoder_layers", "decoder_layers"), [(2, 2), (3, 1)])
def test_translation_layers_equal_torchscales(
    build: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    encoder_layers: int,
    decoder_layers: int,
) -> None:
    depths = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
    ours = build("transformer_deepnorm_6l", **depths).eval()
    for stack, depth in depths.items():
        monkeypatch.setitem(SIZES, stack, depth)
    theirs = of_torchscale("both")
    for mine, other in zip(ours.encoder.layers, theirs.encoder.layers, strict=True):
        copy_weights(mine, other)
        compare(
            lambda x, mine=mine: mine(x, PADDED),
            lambda x, other=other: other(x, PADDED)[0],
            length=7,
        )
    memory = torch.randn(3, 7, WIDTH)
    for mine, other in zip(ours.decoder.layers, theirs.decoder.layers, strict=True):
        copy_weights(mine, other)
        compare(
            lambda x, mine=mine: mine(x, memory.transpose(0, 1), PADDED, self_attn_mask=FUTURE)[0],
            lambda x, other=other: other(x, memory, PADDED, self_attn_mask=FUTURE)[0],
            length=5,
        )


def test_language_model_layers_equal_torchscales(build_lm: Callable[..., Any]) -> None:
    ours = build_lm("transformer_lm_postln_wiki103_16l", norm="deepnorm", decoder_layers=2).eval()
    for mine, other in zip(ours.decoder.layers, of_torchscale("decoder").layers, strict=True):
        copy_weights(mine, other)
        compare(
            lambda x, mine=mine: mine(x, self_attn_mask=FUTURE)[0],
            lambda x, other=other: other(x, self_attn_mask=FUTURE)[0],
            length=5,
        )


def test_speech_layers_equal_torchscales(build_speech: Callable[..., Any]) -> None:
    ours = build_speech("ctc_transformer_postln_36l", norm="deepnorm", encoder_layers=2).eval()
    for mine, other in zip(ours.encoder.layers, of_torchscale("encoder").layers, strict=True):
        copy_weights(mine, other)
        compare(
            lambda x, mine=mine: mine(x, PADDED),
            lambda x, other=other: other(x, PADDED)[0],
            length=7,
        )


def initial_gain(kind: str, stack: str, name: str) -> float:
    """What DeepNorm multiplies a weight's initial values by."""
    builds = {"encoder": build_encoder, "decoder": build_decoder, "both": build_encoder_decoder}
    sizes = []
    for options in (NORMS["deepnorm"], NORMS["postln"]):
        torch.manual_seed(0)
        model = builds[kind](**options)
        layers = (getattr(model, stack) if kind == "both" else model).layers
        sizes.append(layers[0].get_parameter(f"{name}.weight").detach().norm())
    return float(sizes[0] / sizes[1])


@pytest.mark.parametrize("name", ["ffn.fc1", "ffn.fc2", "self_attn.v_proj", "self_attn.out_proj"])
def test_initial_gains_are_torchscales(name: str) -> None:
    encoder, decoder = deepnorm.encoder_decoder(2, 2)
    assert initial_gain("encoder", "", name) == pytest.approx(deepnorm.single_stack(2).beta)
    assert initial_gain("decoder", "", name) == pytest.approx(deepnorm.single_stack(2).beta)
    assert initial_gain("both", "decoder", name) == pytest.approx(decoder.beta)
    # torchscale 0.3.0 has 1.15 where Wang et al. (2022, Figure 2) have 0.87 = 1/1.15.
    assert initial_gain("both", "encoder", name) == pytest.approx(encoder.beta / 0.87 * 1.15)


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.k_proj"])
def test_queries_and_keys_have_no_gain(name: str) -> None:
    for kind, stack in (("encoder", ""), ("decoder", ""), ("both", "encoder"), ("both", "decoder")):
        assert initial_gain(kind, stack, name) == pytest.approx(1)
