"""The speech models' layer: no biases, its initial weights, and what dropping it leaves."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sigma_fairseq.layers.speech_layer import SpeechEncoderLayer
from tests.conftest import SpeechBuilder


def layer_of(build_speech: SpeechBuilder, **options: object) -> SpeechEncoderLayer:
    torch.manual_seed(0)
    model = build_speech("ctc_transformer_postln_36l", encoder_layers=1, **options)
    layer: SpeechEncoderLayer = model.encoder.layers[0]
    for norm in (layer.self_attn_layer_norm, layer.final_layer_norm):
        if isinstance(norm, nn.LayerNorm):
            nn.init.normal_(norm.weight, mean=1.0)
            nn.init.normal_(norm.bias)
    return layer


@pytest.mark.parametrize("reparam", ["none", "sigma", "spectral_norm", "weight_norm"])
def test_no_biases(build_speech: SpeechBuilder, reparam: str) -> None:
    layer = layer_of(build_speech, reparam=reparam)
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 6
    assert all(linear.bias is None for linear in linears)


def test_plain_weights_are_uniform_by_their_fan_in(build_speech: SpeechBuilder) -> None:
    layer = layer_of(build_speech, encoder_embed_dim=64, encoder_ffn_embed_dim=256)
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            assert 0.99 * bound < module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("norm", ["postln", "preln", "deepnorm", "noln"])
def test_dropped_layer_keeps_its_norms(build_speech: SpeechBuilder, norm: str) -> None:
    layer = layer_of(build_speech, norm=norm, attention_dropout=0.0, activation_dropout=0.0)
    x = torch.randn(7, 2, 16)
    whole = layer.train()(x, None)
    layer.dropped = True
    wanted = x
    if norm in ("postln", "deepnorm"):
        for ln in (layer.self_attn_layer_norm, layer.final_layer_norm):
            # A LayerNorm does not see the scale of its input, but its ε does.
            scaled = wanted * (layer.deepnorm.alpha if layer.deepnorm else 1.0)
            wanted = nn.functional.layer_norm(scaled, (16,), ln.weight, ln.bias)
    torch.testing.assert_close(layer(x, None), wanted)
    torch.testing.assert_close(layer.eval()(x, None), whole)


def test_layer_is_pytorchs(build_speech: SpeechBuilder) -> None:
    """Post-LN and pre-LN against `nn.TransformerEncoderLayer` given the same weights."""
    for norm in ("postln", "preln"):
        layer = layer_of(build_speech, norm=norm).eval()
        ours = SimpleNamespace(**dict(layer.named_modules()))
        theirs = nn.TransformerEncoderLayer(16, 4, 32, norm_first=norm == "preln").eval()
        attention = layer.self_attn
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.zero_()
            packed = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
            theirs.self_attn.in_proj_weight.copy_(torch.cat(packed))
            theirs.self_attn.out_proj.weight.copy_(attention.out_proj.weight)
            theirs.linear1.weight.copy_(layer.fc1.weight)
            theirs.linear2.weight.copy_(layer.fc2.weight)
            theirs.norm1.load_state_dict(ours.self_attn_layer_norm.state_dict())
            theirs.norm2.load_state_dict(ours.final_layer_norm.state_dict())
        x = torch.randn(9, 3, 16)
        padding = torch.arange(9) >= torch.tensor([9, 5, 2])[:, None]
        wanted = theirs(x, src_key_padding_mask=padding)
        valid = ~padding.T
        torch.testing.assert_close(layer(x, padding)[valid], wanted[valid], rtol=1e-4, atol=1e-5)
