"""Spectral norms of whole models against SVDs of what `.weight` reads."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sigma_fairseq.monitor.parts import attentions, matrices
from sigma_fairseq.monitor.spectral_norms import SpectralNorms, effective_scales, sigma_errors
from sigma_fairseq.reparam import power_iteration

MODELS = [
    ("transformer", {}),
    ("transformer_preln_6l", {"reparam": "spectral_norm"}),
    ("transformer_preln_6l", {"reparam": "weight_norm"}),
    ("transformer_reparam_postln_6l", {}),
    ("transformer_reparam_deepnorm_6l", {"reparam_qkv": "qk"}),
    ("transformer_reparam_noln_6l", {"reparam_qkv": "qkv", "qk_norm": True}),
]
SHALLOW = {"encoder_layers": 2, "decoder_layers": 1}


def svd(weight: Tensor) -> float:
    return torch.linalg.svdvals(weight.detach().double()).max().item()


def measured(model: nn.Module) -> SpectralNorms:
    return SpectralNorms(list(matrices(model)), list(attentions(model)))


@pytest.fixture(params=MODELS, ids=lambda case: f"{case[0]}-{'-'.join(map(str, case[1]))}")
def model(request: pytest.FixtureRequest, build: Callable[..., Any]) -> nn.Module:
    torch.manual_seed(0)
    name, options = request.param
    model = build(name, **SHALLOW, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.5)  # biases and γ included
    power_iteration(model, steps=3)
    return model.eval()


def test_weights_and_key_query_products_equal_an_svd(model: nn.Module) -> None:
    norms, scales = measured(model), effective_scales(model)
    for _ in range(5):  # each goes on from where the last has come to
        found = norms.weights(scales)
        products, biases = norms.key_query(scales, 5)
    for matrix, norm in zip(matrices(model), found.tolist(), strict=True):
        assert norm == pytest.approx(svd(matrix.module.weight), rel=3e-3), matrix.name

    for index, attention in enumerate(attentions(model)):
        module = attention.module
        heads = module.num_heads
        query = module.q_proj.weight.unflatten(0, (heads, -1))
        key = module.k_proj.weight.unflatten(0, (heads, -1))
        bias = module.q_proj.bias.unflatten(0, (heads, -1))
        for head in range(heads):
            product = key[head].T @ query[head]
            assert products[index, head] == pytest.approx(svd(product), rel=3e-3)
            length = torch.linalg.vector_norm(key[head].T @ bias[head]).item()
            assert biases[index, head] == pytest.approx(length, rel=1e-4)
        assert products[index, heads:].isnan().all()


def test_warm_start_follows_changing_weights(build: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = build("transformer_postln_6l", encoder_embed_dim=64, **SHALLOW)
    norms = measured(model)
    for _ in range(10):
        found = norms.weights({})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.03 * parameter.std() * torch.randn_like(parameter)
    exact = [svd(matrix.module.weight) for matrix in matrices(model)]
    with torch.no_grad():
        found = norms.weights({})
    torch.testing.assert_close(found, torch.tensor(exact), rtol=0.01, atol=0)


def test_warm_start_finds_a_singular_value_that_overtakes(build: Callable[..., Any]) -> None:
    model = build("transformer_postln_6l", **SHALLOW)
    norms = measured(model)
    first = next(matrices(model))
    with torch.no_grad():
        first.module.weight.copy_(torch.eye(16) * torch.arange(1.0, 17.0))
        for _ in range(3):
            before = norms.weights({})[0].item()
        first.module.weight.copy_(torch.eye(16) * torch.arange(16.0, 0, -1))
        for _ in range(6):
            after = norms.weights({})[0].item()
    assert before == pytest.approx(16, rel=1e-2)
    assert after == pytest.approx(16, rel=1e-2)


def test_large_batches_are_cut(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("transformer_reparam_postln_6l", **SHALLOW)
    whole, scales = measured(model).weights({}), effective_scales(model)
    for limit in ("BATCH_ELEMENTS", "SMALL_ELEMENTS"):
        monkeypatch.setattr(f"sigma_fairseq.monitor.spectral_norms.{limit}", 300)
        torch.testing.assert_close(measured(model).weights({}), whole)
        torch.testing.assert_close(effective_scales(model), scales)


def test_sigma_errors_equal_an_svd(build: Callable[..., Any]) -> None:
    model = build("transformer_reparam_postln_6l", reparam_qkv="qk", **SHALLOW)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # the estimates are now behind
    found = sigma_errors(model, list(matrices(model)))
    for matrix, error in zip(matrices(model), found.tolist(), strict=True):
        norm = matrix.sigma_norm()
        if norm is None:
            assert matrix.name == "decoder.output_projection"
            assert error != error  # NaN
        elif matrix.kind == "fc1":
            weight = matrix.plain_weight()
            exact = svd(weight)
            assert error == pytest.approx(1 - norm.sigma(weight).item() / exact, abs=1e-5)
            assert error > 0


def test_reading_takes_no_step_of_torchs_power_iteration(build: Callable[..., Any]) -> None:
    model = build("transformer_postln_6l", reparam="spectral_norm", **SHALLOW).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    measured(model).weights({})
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
    assert all(module.training for module in model.modules())
