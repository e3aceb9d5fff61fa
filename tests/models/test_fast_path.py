"""The fast path against --no-fast-path: every family, in float64, over updates of training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from torch import Tensor, nn

from sigma_fairseq.reparam import LayerWeights, sigma_norms
from tests.conftest import CountOperations

PAD = 1
SHALLOW = {"encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
DEEP = {"encoder_layers": 18, "decoder_layers": 18, "dropout": 0.0}


def words(rows: int = 3, length: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(4, 24, (rows, length), generator=generator)


def translation_loss(model: nn.Module) -> Tensor:
    source, target = words(), words(length=5)
    source[0, :2] = PAD  # fairseq pads sources on the left
    lengths = source.ne(PAD).sum(1)
    logits = model(src_tokens=source, src_lengths=lengths, prev_output_tokens=target)[0]
    return -logits.log_softmax(-1)[..., 5].mean()


def speech_loss(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(2, 30, 80, generator=generator, dtype=torch.float64)
    padding = torch.zeros(2, 30, dtype=torch.bool)
    padding[1, 20:] = True
    logits = model(source=frames, padding_mask=padding)["encoder_out"]
    return -logits.log_softmax(-1)[..., 5].mean()


def train(model: Any, loss: Callable[[nn.Module], Tensor], updates: int = 4) -> list[float]:
    """Losses of a few updates of two micro-batches, and one of evaluation at last."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    model.train()
    for update in range(updates):
        optimizer.zero_grad()
        for _ in range(2):
            model.set_num_updates(update)
            value = loss(model)
            value.backward()
            losses.append(value.item())
        optimizer.step()
    return [*losses, loss(model.eval()).item()]


def compare(
    make: Callable[..., Any], name: str, loss: Callable[[nn.Module], Tensor], **options: Any
) -> None:
    fast, slow = (make(name, no_fast_path=no, **options).double() for no in (False, True))
    slow.load_state_dict(fast.state_dict())
    nodes = [module for module in fast.modules() if isinstance(module, LayerWeights)]
    assert bool(nodes) == bool(list(sigma_norms(fast)))
    assert not [module for module in slow.modules() if isinstance(module, LayerWeights)]
    losses = [train(model, loss) for model in (fast, slow)]
    assert len(set(losses[0])) > 1
    torch.testing.assert_close(*losses, rtol=1e-7, atol=1e-12)
    trained, wanted = (dict(model.named_parameters()) for model in (fast, slow))
    torch.testing.assert_close(trained, wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("norm", ["postln", "preln", "deepnorm", "noln"])
@pytest.mark.parametrize("reparam", ["none", "sigma", "spectral_norm", "weight_norm"])
def test_translation(build: Callable[..., Any], norm: str, reparam: str) -> None:
    options = {"norm": norm, "reparam": reparam, **SHALLOW}
    compare(build, "transformer_postln_6l", translation_loss, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"reparam_qkv": "qk"},
        {"reparam_qkv": "qkv"},
        {"qk_norm": True},
        {"attention_temperature": 0.5},
        {"checkpoint_activations": True},
        {"cross_self_attention": True, "no_cross_attention": True},
        {"decoder_embed_dim": 24, "decoder_output_dim": 24},
    ],
    ids=str,
)
def test_translation_with(build: Callable[..., Any], options: dict[str, Any]) -> None:
    compare(build, "transformer_reparam_postln_6l", translation_loss, **SHALLOW, **options)


@pytest.mark.parametrize("qkv", ["separate", "qk", "qkv"])
@pytest.mark.parametrize("layer_drop", [0.0, 0.5])
def test_speech(build_speech: Callable[..., Any], qkv: str, layer_drop: float) -> None:
    compare(
        build_speech,
        "ctc_transformer_reparam_postln_36l",
        speech_loss,
        encoder_layers=4,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        dropout_input=0.0,
        encoder_layerdrop=layer_drop,
        cape_global_shift=0.0,
        reparam_qkv=qkv,
        reparam_conv=True,
    )


def test_language_model(build_lm: Callable[..., Any], task: Any) -> None:
    text = words(length=9)
    lengths = torch.full((len(text),), 8)
    net_input = {"src_tokens": text[:, :-1], "src_lengths": lengths}
    sample = {"net_input": net_input, "target": text[:, 1:].contiguous(), "ntokens": 24}

    def loss(model: nn.Module) -> Tensor:
        value: Tensor = AdaptiveLoss(task, sentence_avg=False)(model, sample)[0]
        return value.sum() / 24

    rates = ("dropout", "attention_dropout", "activation_dropout", "adaptive_softmax_dropout")
    still = dict.fromkeys(rates, 0.0)
    name = "transformer_lm_reparam_noln_wiki103_16l"
    compare(build_lm, name, loss, decoder_layers=2, **still)


def operations(model: Any) -> int:
    """Of one forward and backward pass."""
    model.train().set_num_updates(1)
    with CountOperations() as counter:
        translation_loss(model).backward()
    return counter.count


@pytest.mark.parametrize("norm", ["postln", "deepnorm", "noln"])
def test_stability_takes_no_more_operations_than_fairseqs_transformer(
    build: Callable[..., Any], norm: str
) -> None:
    shape = {"encoder_embed_dim": 8, "encoder_ffn_embed_dim": 16, **DEEP}
    ours, stock = build(f"transformer_reparam_{norm}_18l", **shape), build("transformer", **shape)
    assert operations(ours) < 0.8 * operations(stock)


def test_power_iteration_takes_as_many_operations_at_any_depth(build: Callable[..., Any]) -> None:
    counts = []
    for depth in (1, 5):
        options = {"encoder_layers": depth, "decoder_layers": depth}
        model = build("transformer_reparam_postln_6l", **options)
        with CountOperations() as counter:
            model.set_num_updates(1)
        counts.append(counter.count)
    assert counts[0] == counts[1] <= 34


@pytest.mark.parametrize("cast", ["half", "double", "fuse"])
def test_power_iteration_is_found_out_anew(build: Callable[..., Any], cast: str) -> None:
    """Which weights there are, and of what type, is remembered from one update to the next."""
    model = build("transformer_reparam_postln_6l", **SHALLOW)
    model.set_num_updates(1)
    if cast == "fuse":
        model.make_generation_fast_()
        model.set_num_updates(2)
        assert not list(sigma_norms(model))
        return
    getattr(model, cast)()
    with torch.no_grad():
        for _, stack in sigma_norms(model):
            for matrix in stack:
                matrix.mul_(3)
    for update in range(2, 6):
        model.set_num_updates(update)
    for norm, stack in sigma_norms(model):
        exact = torch.linalg.matrix_norm(torch.cat(stack).double(), 2)
        torch.testing.assert_close(norm.sigma(*stack).double(), exact, rtol=0.01, atol=0)
