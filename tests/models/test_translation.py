"""Every translation architecture: built, compared with fairseq's, trained a step, decoded."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import models
from fairseq.checkpoint_utils import load_model_ensemble
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sigma_fairseq.models.translation import ARCHITECTURES, DEPTHS, TranslationModel
from sigma_fairseq.reparam import sigma_norms
from tests.conftest import USER_DIR

SIX_LAYERS = [f"{name}_6l" for name in ARCHITECTURES]
SHALLOW = {"encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
PAD = 1


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(4, 24, (3, 6), generator=generator)
    source[0, :2] = PAD  # fairseq pads sources on the left
    target = torch.randint(4, 24, (3, 5), generator=generator)
    lengths = source.ne(PAD).sum(1)
    return {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": target}


def loss(model: nn.Module) -> Tensor:
    return model(**batch())[0].log_softmax(-1)[..., 5].mean()


def test_the_table_of_architectures() -> None:
    norms = {"transformer": ("postln", "preln", "deepnorm")}
    norms["transformer_reparam"] = ("postln", "deepnorm", "noln")
    wanted = {
        f"{stem}_{norm}_{depth}l"
        for stem, placements in norms.items()
        for norm in placements
        for depth in (6, 18, 50, 100)
    }
    assert wanted == {f"{name}_{depth}l" for name in ARCHITECTURES for depth in DEPTHS}
    assert wanted <= ARCH_MODEL_REGISTRY.keys()


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(build: Callable[..., Any], name: str, depth: int) -> None:
    model = build(f"{name}_{depth}l", encoder_embed_dim=8, encoder_ffn_embed_dim=8)
    assert isinstance(model, TranslationModel)
    assert len(model.encoder.layers) == len(model.decoder.layers) == depth
    assert model.cfg.norm == ARCHITECTURES[name]["norm"]
    per_layer = 16 if "reparam" in name else 0
    assert len(list(sigma_norms(model))) == per_layer * depth
    # Everything but the embeddings and the output layer is reparameterized.
    plain = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not parametrize.is_parametrized(module)
    ]
    assert (plain == ["decoder.output_projection"]) == ("reparam" in name)


def test_default_shape_is_the_papers(task: Any) -> None:
    cfg = OmegaConf.create({"model": {"_name": "transformer_postln_6l"}}).model
    model = models.build_model(cfg, task)
    layer = model.encoder.layers[0]
    assert layer.fc1.weight.shape == (2048, 512)
    assert layer.self_attn.num_heads == 8
    assert model.decoder.layers[0].fc1.weight.shape == (2048, 512)


@pytest.mark.parametrize(("norm", "preln"), [("postln", False), ("preln", True)])
def test_plain_models_compute_what_fairseqs_compute(
    build: Callable[..., Any], norm: str, preln: bool
) -> None:
    options = {"share_decoder_input_output_embed": True, **SHALLOW}
    slow = build(f"transformer_{norm}_6l", no_fast_path=True, **options)
    fast = build(f"transformer_{norm}_6l", **options)
    theirs = build(
        "transformer", encoder_normalize_before=preln, decoder_normalize_before=preln, **options
    )
    for model in (slow, fast):
        model.load_state_dict(theirs.state_dict())
    for model in (slow, fast, theirs):
        model.zero_grad()
        loss(model).backward()
    logits = theirs(**batch())[0]
    assert torch.equal(slow(**batch())[0], logits)
    torch.testing.assert_close(fast(**batch())[0], logits)
    for mine, quick, other in zip(
        slow.parameters(), fast.parameters(), theirs.parameters(), strict=True
    ):
        assert torch.equal(mine.grad, other.grad)
        torch.testing.assert_close(quick.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", ["postln", "preln", "deepnorm", "noln"])
@pytest.mark.parametrize("reparam", ["none", "sigma", "spectral_norm", "weight_norm"])
def test_every_norm_works_with_every_reparameterization(
    build: Callable[..., Any], norm: str, reparam: str
) -> None:
    model = build("transformer_postln_6l", norm=norm, reparam=reparam, **SHALLOW)
    model.train()
    model.set_num_updates(0)
    loss(model).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    model.eval()
    before = model(**batch())[0]
    model.make_generation_fast_()
    torch.testing.assert_close(model(**batch())[0], before)


OPTIONS: list[dict[str, Any]] = [
    {"share_all_embeddings": True},
    {"checkpoint_activations": True},
    {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5},
    {"max_source_positions": 7},
    {"layernorm_embedding": True},
    {"no_cross_attention": True},
    {"cross_self_attention": True, "no_cross_attention": True},
    {"encoder_learned_pos": True, "decoder_learned_pos": True},
    {"activation_fn": "gelu", "activation_dropout": 0.1, "attention_dropout": 0.1},
    {"decoder_output_dim": 12},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize(
    "architecture", ["transformer_postln_6l", "transformer_reparam_deepnorm_6l"]
)
def test_fairseqs_own_options_work(
    build: Callable[..., Any], architecture: str, options: dict[str, Any]
) -> None:
    model = build(architecture, **{**SHALLOW, **options}).train()
    model.set_num_updates(0)
    loss(model).backward()
    assert model.eval()(**batch())[0].shape == (3, 5, 24)
    if "max_source_positions" in options:
        assert model.max_positions() == (7, 1024)


def test_scalar_quantization_noise_finds_every_linear(build: Callable[..., Any]) -> None:
    """fairseq swaps linear layers for noisy ones, on a GPU: they are to be called, not read."""
    model = build("transformer_postln_6l", quant_noise_scalar=0.1, **SHALLOW)
    linears = {module for module in model.modules() if isinstance(module, nn.Linear)}
    called = set()
    for linear in linears:
        linear.register_forward_hook(lambda module, *_: called.add(module))
    loss(model)
    assert called == linears


def test_checkpointed_activations_give_the_same_gradients(build: Callable[..., Any]) -> None:
    plain = build("transformer_reparam_deepnorm_6l", **SHALLOW)
    checkpointed = build("transformer_reparam_deepnorm_6l", checkpoint_activations=True, **SHALLOW)
    checkpointed.load_state_dict(plain.state_dict())
    for model in (plain, checkpointed):
        # In fp32 the second forward pass may round to the other side of a ReLU's 0.
        model.double().train().set_num_updates(3)
        loss(model).backward()
    for mine, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        *((architecture, {}) for architecture in SIX_LAYERS),
        *((f"transformer_{name}_6l", {"qk_norm": True}) for name in ("preln", "reparam_noln")),
        ("transformer_reparam_noln_6l", {"attention_temperature": 0.1}),
    ],
)
def test_incremental_decoding_equals_the_whole(
    build: Callable[..., Any], architecture: str, options: dict[str, Any]
) -> None:
    model = build(architecture, **SHALLOW, **options).eval()
    inputs = batch()
    target = inputs["prev_output_tokens"]
    encoded = model.encoder(inputs["src_tokens"], inputs["src_lengths"])
    whole = model.decoder(target, encoder_out=encoded)[0]
    state: dict[str, Any] = {}
    for step in range(target.shape[1]):
        one = model.decoder(target[:, : step + 1], encoder_out=encoded, incremental_state=state)[0]
        torch.testing.assert_close(one[:, 0], whole[:, step], rtol=1e-4, atol=1e-5)


def test_beam_search_is_the_same_after_fusing(build: Callable[..., Any], task: Any) -> None:
    model = build("transformer_reparam_deepnorm_6l", **SHALLOW).eval()
    fused = copy.deepcopy(model)
    fused.make_generation_fast_()
    assert not list(sigma_norms(fused))
    sample = {"net_input": batch()}
    hypotheses = [
        SequenceGenerator([m], task.target_dictionary, beam_size=3, max_len_b=8).generate(
            [m], sample
        )
        for m in (model, fused)
    ]
    for mine, other in zip(*hypotheses, strict=True):
        assert [h["tokens"].tolist() for h in mine] == [h["tokens"].tolist() for h in other]


@pytest.mark.parametrize("shared_keys", [False, True])
def test_beam_search_finds_what_fairseqs_finds(
    build: Callable[..., Any], task: Any, shared_keys: bool
) -> None:
    torch.manual_seed(0)
    theirs = build("transformer", **SHALLOW).eval()
    ours = build("transformer_postln_6l", **SHALLOW).eval()
    ours.load_state_dict(theirs.state_dict())
    found = []
    for model in (ours, theirs):
        if shared_keys:
            model.decoder.set_beam_size(3)
        generator = SequenceGenerator([model], task.target_dictionary, beam_size=3, max_len_b=8)
        found.append(generator.generate([model], {"net_input": batch()}))
    for mine, other in zip(*found, strict=True):
        assert [h["tokens"].tolist() for h in mine] == [h["tokens"].tolist() for h in other]
        torch.testing.assert_close([h["attention"] for h in mine], [h["attention"] for h in other])


@pytest.mark.parametrize("norm", ["postln", "preln", "deepnorm"])
@pytest.mark.parametrize("reparam", ["none", "sigma"])
def test_qk_norm_works_with_every_norm_and_sigma(
    build: Callable[..., Any], norm: str, reparam: str
) -> None:
    options = {"norm": norm, "reparam": reparam, **SHALLOW}
    model = build("transformer_postln_6l", qk_norm=True, **options)
    model.train().set_num_updates(0)
    before = loss(model)
    before.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name and not name.endswith("original"):  # weight or gamma, and bias
                parameter *= 10
    # LayerNorm takes the factor out of the queries again, but for its epsilon.
    torch.testing.assert_close(loss(model), before, rtol=1e-3, atol=1e-3)


def test_a_narrowed_model_trains_with_sigma_in_fp32(build: Callable[..., Any]) -> None:
    model = build("transformer_reparam_deepnorm_6l", reparam_qkv="qk", **SHALLOW)
    wide = loss(model.eval())
    model.train().bfloat16()  # as fairseq's --bf16 does
    model.set_num_updates(0)
    narrow = loss(model)
    torch.testing.assert_close(narrow.float(), wide, rtol=0.05, atol=0.05)
    narrow.backward()
    for norm, stack in sigma_norms(model):
        assert norm.u.dtype == norm.v.dtype == norm.gamma.dtype == torch.float32
        assert norm.gamma.grad.dtype == torch.float32
        assert {block.dtype for block in stack} == {torch.bfloat16}
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_one_power_iteration_an_update(build: Callable[..., Any]) -> None:
    model = build("transformer_reparam_deepnorm_6l", **SHALLOW)

    def vectors() -> Tensor:
        return torch.cat([torch.cat([norm.u, norm.v]) for norm, _ in sigma_norms(model)])

    def announce(update: int) -> bool:
        before = vectors()
        model.set_num_updates(update)
        loss(model).backward()
        return not torch.equal(before, vectors())

    model.train()
    for _, stack in sigma_norms(model):
        stack[0].data += 0.05 * torch.randn_like(stack[0])
    assert announce(0)
    assert not announce(0)  # another micro-batch of the same update
    model.eval()
    assert not announce(1)  # validation
    model.train()
    assert announce(1)
    # On resuming fairseq announces the update before it loads the state: it is still due.
    state = copy.deepcopy(model.state_dict())
    model.set_num_updates(2)
    model.load_state_dict(state)
    assert announce(2)


def test_deepnorm_survives_pruning_by_layers_to_keep(build: Callable[..., Any]) -> None:
    whole = build("transformer_deepnorm_6l")
    kept = build(
        "transformer_deepnorm_6l", encoder_layers_to_keep="0,2", decoder_layers_to_keep="1"
    )
    assert (len(kept.encoder.layers), len(kept.decoder.layers)) == (2, 1)
    assert kept.encoder.layers[0].deepnorm == whole.encoder.layers[0].deepnorm
    state = copy.deepcopy(whole.state_dict())
    cfg = OmegaConf.create(
        {"_name": "x", "encoder_layers_to_keep": "0,2", "decoder_layers_to_keep": "1"}
    )
    kept.load_state_dict(state, model_cfg=cfg)
    assert torch.equal(kept.encoder.layers[1].fc1.weight, whole.encoder.layers[2].fc1.weight)


def hotter(model: nn.Module, temperature: float) -> nn.Module:
    """A copy whose queries are longer by 1 / temperature, which divides the logits as much."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name:
                parameter /= temperature
    return model


def test_temperature_from_an_update_on(build: Callable[..., Any]) -> None:
    model = build(
        "transformer_deepnorm_6l", attention_temperature=0.25, temperature_from_update=3, **SHALLOW
    )
    plain = build("transformer_deepnorm_6l", **SHALLOW)
    state = copy.deepcopy(model.state_dict())
    plain.load_state_dict(state)
    cold, hot = loss(plain), loss(hotter(plain, 0.25))
    assert not torch.isclose(cold, hot)

    def loss_at(update: int) -> Tensor:
        model.set_num_updates(update)
        return loss(model)

    torch.testing.assert_close(loss(model), cold)
    torch.testing.assert_close(loss_at(2), cold)
    torch.testing.assert_close(loss_at(3), hot)
    torch.testing.assert_close(loss_at(3), hot)  # another micro-batch
    torch.testing.assert_close(loss_at(4), hot)


@pytest.mark.parametrize(
    ("update", "from_update", "trained_hot"), [(3, 3, 0), (4, 3, 1), (0, 0, 1)]
)
def test_a_checkpoint_keeps_the_temperature_it_was_trained_at(
    build: Callable[..., Any], update: int, from_update: int, trained_hot: bool
) -> None:
    """fairseq announces how many updates a state has had, then loads it."""
    options = {"attention_temperature": 0.25, "temperature_from_update": from_update}
    model = build("transformer_deepnorm_6l", **options, **SHALLOW)
    plain = build("transformer_deepnorm_6l", **SHALLOW)
    plain.load_state_dict(copy.deepcopy(model.state_dict()))
    hot = hotter(plain, 0.25)
    model.set_num_updates(update)
    model.load_state_dict(copy.deepcopy(plain.state_dict()))
    torch.testing.assert_close(loss(model), loss(hot if trained_hot else plain))
    model.set_num_updates(update)  # training goes on
    torch.testing.assert_close(loss(model), loss(hot))


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("transformer_postln_6l", {"reparam_qkv": "qk"}, "--reparam-qkv qk needs --reparam sigma"),
        ("transformer_postln_6l", {"reparam_init_std": 0.1}, "--reparam-init-std 0.1 needs"),
        ("transformer_preln_6l", {"gamma_lr_scale": 2.0}, "--gamma-lr-scale 2.0 needs"),
        ("transformer_reparam_postln_6l", {"reparam_init_std": 0.0}, "is not above 0"),
        ("transformer_reparam_postln_6l", {"gamma_lr_scale": -1.0}, "is below 0"),
        (
            "transformer_deepnorm_6l",
            {"encoder_normalize_before": True},
            "--encoder-normalize-before is pre-LN and contradicts --norm deepnorm",
        ),
        ("transformer_reparam_noln_6l", {"layernorm_embedding": True}, "contradicts --norm noln"),
        ("transformer_reparam_postln_6l", {"quant_noise_pq": 0.1}, "--quant-noise-pq"),
        ("transformer_reparam_postln_6l", {"quant_noise_scalar": 0.1}, "--quant-noise-scalar"),
        (
            "transformer_postln_6l",
            {"quant_noise_pq": 0.1, "encoder_ffn_embed_dim": 20},
            "--quant-noise-pq-block-size 8 does not divide .* --encoder-ffn-embed-dim 20",
        ),
        (
            "transformer_postln_6l",
            {"decoder_attention_heads": 3},
            "--decoder-embed-dim 16 is not a multiple of --decoder-attention-heads 3",
        ),
        (
            "transformer_postln_6l",
            {"cross_self_attention": True, "decoder_embed_dim": 24},
            "--cross-self-attention needs .* --encoder-embed-dim 16 and --decoder-embed-dim 24",
        ),
        (
            "transformer_postln_6l",
            {"merge_src_tgt_embed": True, "decoder_embed_dim": 24},
            "--merge-src-tgt-embed needs an encoder as wide as the decoder",
        ),
        (
            "transformer_reparam_postln_6l",
            {"reparam_qkv": "qk", "decoder_embed_dim": 24},
            "--reparam-qkv qk needs an encoder as wide as the decoder",
        ),
        (
            "transformer_postln_6l",
            {"decoder_layers_to_keep": "0,2"},
            "--encoder-layers-to-keep and --decoder-layers-to-keep need each other",
        ),
        (
            "transformer_postln_6l",
            {"tie_adaptive_weights": True},
            "--tie-adaptive-weights needs adaptive input",
        ),
        (
            "transformer_postln_6l",
            {"share_all_embeddings": True, "adaptive_softmax_cutoff": [8, 16]},
            "--share-all-embeddings contradicts --adaptive-softmax-cutoff",
        ),
        (
            "transformer_postln_6l",
            {"share_decoder_input_output_embed": True, "decoder_output_dim": 12},
            "--share-decoder-input-output-embed needs a --decoder-output-dim of 16",
        ),
        (
            "transformer_postln_6l",
            {"adaptive_softmax_cutoff": [8, 30]},
            r"--adaptive-softmax-cutoff \[8, 30\] does not rise",
        ),
        ("transformer_postln_6l", {"attention_temperature": 0.0}, "is not above 0"),
        ("transformer_postln_6l", {"attention_temperature": float("nan")}, "is not above 0"),
        ("transformer_postln_6l", {"temperature_from_update": -1}, "is below 0"),
        (
            "transformer_postln_6l",
            {"temperature_from_update": 5},
            "--temperature-from-update 5 needs --attention-temperature",
        ),
        (
            "transformer_postln_6l",
            {"qk_norm": True, "decoder_xformers_att_config": "{'name': 'scaled_dot_product'}"},
            "--decoder-xformers-att-config has neither --qk-norm nor",
        ),
    ],
)
def test_contradictions_are_refused_in_one_line(
    build: Callable[..., Any], architecture: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build(architecture, **options)
    assert "\n" not in str(error.value)


def test_a_model_with_its_own_gamma_rate_can_be_copied(build: Callable[..., Any]) -> None:
    """fairseq's --store-ema deep-copies the model."""
    model = build("transformer_reparam_deepnorm_6l", gamma_lr_scale=2.0, **SHALLOW).eval()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**batch())[0], model(**batch())[0])


def test_missing_and_unknown_keys_are_named(build: Callable[..., Any]) -> None:
    model = build("transformer_reparam_deepnorm_6l", **SHALLOW)
    state = copy.deepcopy(model.state_dict())
    gamma = next(key for key in state if key.endswith("gamma"))
    value = state.pop(gamma)
    with pytest.raises(RuntimeError, match=gamma.replace(".", r"\.")):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match="surprise"):
        model.load_state_dict({**state, gamma: value, "surprise": value})


def test_checkpoints_of_an_intervention_load_with_their_own_temperature(
    fairseq: Callable[..., Any], data_bin: Path, tmp_path: Path
) -> None:
    fairseq(
        "train",
        *(str(data_bin), "--user-dir", USER_DIR, "--cpu", "--save-dir", str(tmp_path)),
        *("--arch", "transformer_postln_6l", "--encoder-layers", "1", "--decoder-layers", "1"),
        *("--encoder-embed-dim", "16", "--qk-norm", "--batch-size", "16", "--optimizer", "adam"),
        *("--attention-temperature", "0.1", "--temperature-from-update", "2"),
        *("--max-update", "3", "--save-interval-updates", "1", "--disable-validation"),
    )
    scales = []
    for update in (1, 2, 3):
        path = str(tmp_path / f"checkpoint_1_{update}.pt")
        ((model,), _) = load_model_ensemble([path])
        attention = model.decoder.layers[0].encoder_attn
        assert isinstance(attention.q_norm, nn.LayerNorm)
        scales.append(attention.dot_product.scale * attention.head_dim**0.5)
    assert scales == pytest.approx([1, 1, 10])


def test_flattened_weights_are_refused(build: Callable[..., Any]) -> None:
    """As under --ddp-backend fully_sharded, whose wrapper flattens what it holds."""
    flatten = pytest.importorskip(
        "fairscale.nn.misc", reason="needs fairscale, of the torchscale extra"
    ).FlattenParamsWrapper
    plain = flatten(build("transformer_postln_6l", **SHALLOW))
    plain.module.set_num_updates(1)
    sharded = flatten(build("transformer_reparam_deepnorm_6l", **SHALLOW))
    with pytest.raises(ValueError, match=r"--ddp-backend fully_sharded .* examples/fsdp\.py"):
        sharded.module.set_num_updates(1)
