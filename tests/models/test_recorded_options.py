"""A model's state records its options: another model does not take it for its own."""

import json
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sigma_fairseq.models.recorded_options import VERSION, check_recorded, record

Build = Callable[..., Any]
POSTLN = "transformer_reparam_postln_6l"
TWO = {"encoder_layers": 2, "decoder_layers": 2}


def read(state: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bytes(state.tolist()))
    return found


@pytest.mark.parametrize(
    ("arch", "options", "differing"),
    [
        (POSTLN, {"encoder_layers": 3}, ["encoder-layers"]),
        ("transformer_reparam_deepnorm_6l", TWO, ["norm"]),
        ("transformer_postln_6l", TWO, ["reparam"]),
        (POSTLN, {**TWO, "reparam_qkv": "qkv"}, ["reparam-qkv"]),
        (POSTLN, {**TWO, "qk_norm": True}, ["qk-norm"]),
        (POSTLN, {**TWO, "decoder_attention_heads": 2}, ["decoder-attention-heads"]),
        (POSTLN, {**TWO, "decoder_ffn_embed_dim": 8}, ["decoder-ffn-embed-dim"]),
        ("transformer_preln_6l", {**TWO, "reparam": "weight_norm"}, ["norm", "reparam"]),
    ],
)
def test_other_options_are_named(
    arch: str, options: dict[str, Any], differing: list[str], build: Build
) -> None:
    """Some of these have tensors of the same names and shapes, and would load."""
    state = build(POSTLN, **TWO).state_dict()
    with pytest.raises(ValueError, match=r"^the checkpoint is of a model with ") as error:
        build(arch, **{**TWO, **options}).load_state_dict(state)
    has, wanted = str(error.value).split(", this one has ")
    for side in (has, wanted):
        assert [word[2:] for word in side.split() if word.startswith("--")] == differing
    assert "\n" not in str(error.value)


def test_families_record_what_they_have(build: Build, build_lm: Build, build_speech: Build) -> None:
    translation, lm, speech = (
        read(model.state_dict()["options_version"])
        for model in (
            build(POSTLN, encoder_layers=1, decoder_layers=2),
            build_lm("transformer_lm_preln_wiki103_16l", decoder_layers=1),
            build_speech("ctc_transformer_reparam_noln_36l", encoder_layers=1),
        )
    )
    assert translation["version"] == lm["version"] == speech["version"] == VERSION
    assert (translation["encoder_layers"], translation["decoder_layers"]) == (1, 2)
    assert (lm["norm"], lm["reparam"], lm["decoder_layers"]) == ("preln", "none", 1)
    assert "encoder_layers" not in lm
    assert (speech["norm"], speech["reparam_qkv"], speech["encoder_layers"]) == ("noln", "qk", 1)


def test_states_without_a_record_load(build: Build) -> None:
    """Those of version 0, and fairseq's own."""
    model, other = build(POSTLN, **TWO), build(POSTLN, **TWO)
    state = model.state_dict()
    del state["options_version"]
    other.load_state_dict(state)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_what_averages_or_narrows_states_leaves_the_record(build: Build) -> None:
    state = build(POSTLN, **TWO).state_dict()
    record_of_three = (3 * state["options_version"]) // 3  # as fairseq averages whole numbers
    state["options_version"] = record_of_three.half()
    build(POSTLN, **TWO).load_state_dict(state)


def test_a_later_version_is_refused() -> None:
    options = SimpleNamespace(norm="preln", encoder_layers=3)
    later = json.dumps({**read(record(options)), "version": VERSION + 1})
    with pytest.raises(ValueError, match=f"of version {VERSION + 1} .* update sigma_fairseq"):
        check_recorded(torch.tensor(list(later.encode())), record(options))


def test_layers_left_out_of_a_trained_model_are_no_other_depth(
    build: Build, build_lm: Build
) -> None:
    """As --model-overrides does it at generation."""
    state = build(POSTLN, **TWO).state_dict()
    keep = {"encoder_layers_to_keep": "1", "decoder_layers_to_keep": "0"}
    pruned = build(POSTLN, **TWO, **keep)
    pruned.load_state_dict(state, model_cfg=SimpleNamespace(arch=POSTLN, **keep))
    assert len(pruned.encoder.layers) == len(pruned.decoder.layers) == 1
    arch = "transformer_lm_preln_wiki103_16l"
    options = {"norm": "deepnorm", "decoder_layers": 2}
    state, keep = build_lm(arch, **options).state_dict(), {"decoder_layers_to_keep": "1"}
    pruned = build_lm(arch, **options, **keep)
    pruned.load_state_dict(state, model_cfg=SimpleNamespace(arch=arch, **keep))
    whole = build_lm(arch, **options)
    assert len(pruned.decoder.layers) == 1
    # α is that of the depth it was trained at.
    assert pruned.decoder.layers[0].deepnorm == whole.decoder.layers[0].deepnorm


def test_a_degenerate_weight_is_told_of_once(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(POSTLN, **TWO).train()
    model.encoder.layers[0].fc1.parametrizations.weight[0].gamma.data.fill_(-1)
    with caplog.at_level(logging.WARNING):
        for update in range(301):
            model.set_num_updates(update)
    lines = [record.message for record in caplog.records if "γ" in record.message]
    assert lines == ["update 0: γ of encoder.layers.0.fc1.weight is -1"]
