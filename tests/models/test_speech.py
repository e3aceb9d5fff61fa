"""Every speech architecture: built, alone and in a batch, dropped layers, options."""

from typing import Any

import numpy as np
import pytest
import torch
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from sigma_fairseq.layers import deepnorm
from sigma_fairseq.models.speech import ARCHITECTURES, DEPTHS, SpeechModel
from sigma_fairseq.reparam import fuse, power_iteration, sigma_norms
from tests.conftest import SpeechBuilder

LENGTHS = (61, 40, 9, 1)


def batch(lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    source = torch.randn(len(lengths), max(lengths), 80, generator=generator)
    return {"source": source.masked_fill(padding[..., None], 0.0), "padding_mask": padding}


def test_the_table_of_architectures() -> None:
    wanted = {
        f"ctc_transformer_{variant}_{depth}l"
        for variant in ("postln", "preln", "reparam_postln", "reparam_noln")
        for depth in (36, 72)
    }
    assert wanted == {f"{name}_{depth}l" for name in ARCHITECTURES for depth in DEPTHS}
    assert wanted <= ARCH_MODEL_REGISTRY.keys()


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(build_speech: SpeechBuilder, name: str, depth: int) -> None:
    model = build_speech(f"{name}_{depth}l")
    assert isinstance(model, SpeechModel)
    assert len(model.encoder.layers) == depth
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    # Two a layer, and a final one in pre-LN.
    wanted = {"postln": 2 * depth, "preln": 2 * depth + 1, "noln": 0}
    assert len(norms) == wanted[ARCHITECTURES[name]["norm"]]
    plain = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d) and not parametrize.is_parametrized(module)
    ]
    if "reparam" in name:
        assert plain == ["encoder.front_end.conv"]
        # q with k, v, out, fc1, fc2 of each layer, and the final linear.
        assert len({id(norm) for norm, _ in sigma_norms(model)}) == 5 * depth + 1
    else:
        assert len(plain) == 6 * depth + 2


def test_default_shape_is_the_papers() -> None:
    cfg = MODEL_DATACLASS_REGISTRY["ctc_transformer_reparam_postln_36l"]()
    shape = (cfg.encoder_embed_dim, cfg.encoder_ffn_embed_dim, cfg.encoder_attention_heads)
    assert shape == (768, 3072, 4)
    assert cfg.activation_fn == "relu"
    assert cfg.encoder_layerdrop == cfg.attention_dropout == cfg.activation_dropout == 0.3
    assert (cfg.cape_global_shift, cfg.cape_local_shift, cfg.cape_max_scale) == (30.0, 0.0, 1.0)


@pytest.mark.parametrize("reparam", ["none", "sigma", "spectral_norm", "weight_norm"])
@pytest.mark.parametrize("norm", ["postln", "preln", "deepnorm", "noln"])
def test_alone_as_in_a_batch(build_speech: SpeechBuilder, norm: str, reparam: str) -> None:
    torch.manual_seed(0)
    model = build_speech(
        "ctc_transformer_postln_36l", encoder_layers=3, norm=norm, reparam=reparam
    ).eval()
    # A zero of the input must not stay one, or padding could not be told from it.
    nn.init.constant_(model.encoder.front_end.bias, 0.5)
    sample = batch()
    together = model(**sample)
    assert together["encoder_out"].shape == (21, 4, 29)
    assert (~together["padding_mask"]).sum(1).tolist() == [21, 14, 3, 1]
    for row, frames in enumerate(LENGTHS):
        alone = model(sample["source"][row : row + 1, :frames])
        assert alone["padding_mask"] is None
        logits = alone["encoder_out"][:, 0]
        torch.testing.assert_close(
            together["encoder_out"][: len(logits), row], logits, rtol=1e-4, atol=1e-5
        )


def test_features_at_padding_do_not_matter(build_speech: SpeechBuilder) -> None:
    model = build_speech("ctc_transformer_reparam_postln_36l", encoder_layers=2).eval()
    sample = batch((30, 12))
    logits = model(**sample)["encoder_out"]
    sample["source"][1, 12:] = 100.0
    torch.testing.assert_close(model(**sample)["encoder_out"][:4], logits[:4])


def test_probabilities(build_speech: SpeechBuilder) -> None:
    model = build_speech("ctc_transformer_postln_36l", encoder_layers=1).eval()
    output = model(**batch())
    log_probs = model.get_normalized_probs(output, log_probs=True)
    torch.testing.assert_close(log_probs.exp(), output["encoder_out"].softmax(-1))


def test_attention_is_never_a_matrix(build_speech: SpeechBuilder) -> None:
    """Nothing as large as time × time is made, forward or backward."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, Tensor):
                    self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
            return result

    # PyTorch's kernel for the CPU has no dropout; those for GPUs do.
    model = build_speech(
        "ctc_transformer_reparam_postln_36l", encoder_layers=2, attention_dropout=0.0
    )
    model.set_num_updates(1)
    time = 6000
    for sample in ({"source": torch.randn(1, time, 80)}, batch((time, time - 50))):
        with Largest() as largest:
            model(**sample)["encoder_out"].logsumexp(-1).sum().backward()
        assert largest.elements < (time // 3) ** 2


def dropped(model: Any) -> list[bool]:
    return [layer.dropped for layer in model.encoder.layers]


def test_layer_drop_is_one_draw_a_layer_and_update(build_speech: SpeechBuilder) -> None:
    model = build_speech("ctc_transformer_postln_36l", encoder_layerdrop=0.3)
    draws = []
    for update in range(100):
        model.set_num_updates(update)
        draws.append(dropped(model))
        torch.rand(update)  # whatever else draws
        model.set_num_updates(update)  # the next micro-batch
        assert dropped(model) == draws[-1]
    table = np.array(draws)
    assert table.mean() == pytest.approx(0.3, abs=0.03)
    # Neither a layer nor an update repeats another.
    assert len({tuple(row) for row in table}) == 100
    assert len({tuple(column) for column in table.T}) == 36
    # A resumed run, and another worker, draw the same; another seed does not.
    again = build_speech("ctc_transformer_postln_36l", encoder_layerdrop=0.3)
    again.set_num_updates(57)
    assert dropped(again) == draws[57]
    other = build_speech("ctc_transformer_postln_36l", encoder_layerdrop=0.3, seed=2)
    other.set_num_updates(57)
    assert dropped(other) != draws[57]


def test_dropped_layers_are_not_computed(build_speech: SpeechBuilder) -> None:
    model = build_speech(
        "ctc_transformer_reparam_postln_36l", encoder_layers=6, encoder_layerdrop=0.5,
        checkpoint_activations=True,
    )  # fmt: skip
    model.set_num_updates(3)
    assert 0 < sum(dropped(model)) < 6
    model(**batch())["encoder_out"].logsumexp(-1).sum().backward()
    for layer in model.encoder.layers:
        without = [name for name, p in layer.named_parameters() if p.grad is None]
        matrices = [name for name, _ in layer.named_parameters() if "layer_norm" not in name]
        assert without == (matrices if layer.dropped else [])


def test_deepnorm_constants_are_those_of_one_stack(build_speech: SpeechBuilder) -> None:
    model = build_speech("ctc_transformer_postln_36l", norm="deepnorm")
    assert model.encoder.layers[0].deepnorm == deepnorm.single_stack(36)
    assert deepnorm.single_stack(36).alpha == pytest.approx(72**0.25)


def test_groups_of_projections(build_speech: SpeechBuilder) -> None:
    for qkv, norms in (("separate", 6), ("qk", 5), ("qkv", 4)):
        model = build_speech(
            "ctc_transformer_reparam_postln_36l", encoder_layers=2, reparam_qkv=qkv
        )
        assert len({id(norm) for norm, _ in sigma_norms(model)}) == 2 * norms + 1


def test_convolution_is_reparameterized_on_request(build_speech: SpeechBuilder) -> None:
    for reparam in ("sigma", "spectral_norm"):
        model = build_speech(
            "ctc_transformer_postln_36l", encoder_layers=1, reparam=reparam, reparam_conv=True
        ).eval()
        weight = model.encoder.front_end.conv.weight.flatten(1)
        sigma = torch.linalg.matrix_norm(weight, 2).item()
        assert sigma == pytest.approx(1.0, rel=0.03 if reparam == "sigma" else 0.3)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "reparam" in name])
def test_trains_a_step_and_fuses(build_speech: SpeechBuilder, name: str) -> None:
    model = build_speech(f"{name}_36l", encoder_layers=2, encoder_layerdrop=0.0)
    power_iteration(model)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01)
    model.set_num_updates(0)
    model(**batch())["encoder_out"].log_softmax(-1)[..., 3].mean().neg().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    model.eval()
    logits = model(**batch())["encoder_out"]
    fuse(model)
    assert not list(sigma_norms(model))
    torch.testing.assert_close(model(**batch())["encoder_out"], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reparam_conv": True}, "--reparam-conv needs"),
        ({"encoder_attention_heads": 3}, "--encoder-embed-dim 16 is not a multiple"),
        ({"encoder_layerdrop": 1.0}, "--encoder-layerdrop 1.0 is not a share"),
        ({"cape_max_scale": 0.5}, "a scale from 1"),
        ({"reparam_qkv": "qk"}, "--reparam-qkv qk needs --reparam sigma"),
    ],
)
def test_bad_options(build_speech: SpeechBuilder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build_speech("ctc_transformer_postln_36l", **options)
    assert "\n" not in str(error.value)
