"""Every language-model architecture: built, compared with fairseq's, tied, trained, decoded."""

import copy
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import models
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.optim import FP16Optimizer
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sigma_fairseq.models.language_model import ARCHITECTURES, DEPTHS, LanguageModel
from sigma_fairseq.reparam import convert, fuse, power_iteration, sigma_norms
from tests.conftest import build_task

SIXTEEN_LAYERS = [f"{name}_16l" for name in ARCHITECTURES]
NOLN = "transformer_lm_reparam_noln_wiki103_16l"
PRELN = "transformer_lm_preln_wiki103_16l"
STILL = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
STILL |= {"adaptive_softmax_dropout": 0.0}
SHALLOW = {"decoder_layers": 2, **STILL}
VARIANTS = [
    (norm, reparam)
    for norm in ("postln", "preln", "deepnorm", "noln")
    for reparam in ("none", "sigma", "spectral_norm", "weight_norm")
]
PAD, EOS, WORDS = 1, 2, 24


def tokens(rows: int = 3, length: int = 10) -> Tensor:
    """Words of all bands, but not each later band's second: fairseq's loss takes it for padding."""
    generator = torch.Generator().manual_seed(0)
    words = torch.tensor([word for word in range(4, WORDS) if word not in (8 + PAD, 16 + PAD)])
    return words[torch.randint(0, len(words), (rows, length), generator=generator)]


def sample(pad: int = 0) -> dict[str, Any]:
    """Blocks as fairseq's task cuts them: the target is one ahead; the last may be shorter."""
    words = tokens(length=11)
    target = words[:, 1:].clone()
    source = words[:, :-1].clone()
    if pad:
        source[-1, -pad:], target[-1, -pad:] = PAD, PAD
    lengths = source.ne(PAD).sum(1)
    net_input = {"src_tokens": source, "src_lengths": lengths}
    return {"net_input": net_input, "target": target, "ntokens": int(lengths.sum())}


def adaptive_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """fairseq's criterion, bits summed over the batch."""
    dictionary = model.decoder.dictionary  # type: ignore[union-attr]
    criterion = AdaptiveLoss(SimpleNamespace(target_dictionary=dictionary), sentence_avg=False)
    loss: Tensor = criterion(model, batch)[0]
    return loss


def test_the_table_of_architectures() -> None:
    stems = ("postln", "preln", "reparam_noln")
    wanted = {f"transformer_lm_{stem}_wiki103_{n}l" for stem in stems for n in (16, 32)}
    assert wanted == {f"{name}_{depth}l" for name in ARCHITECTURES for depth in DEPTHS}
    assert wanted <= ARCH_MODEL_REGISTRY.keys()


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(build_lm: Callable[..., Any], name: str, depth: int) -> None:
    model = build_lm(f"{name}_{depth}l")
    assert isinstance(model, LanguageModel)
    assert len(model.decoder.layers) == depth
    assert model.decoder.cfg.norm == ARCHITECTURES[name]["norm"]
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    if "reparam" not in name:
        assert len(norms) == 2 * depth
        assert not list(sigma_norms(model))
        return
    assert not norms
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert all(parametrize.is_parametrized(linear, "weight") for linear in linears)
    # Six a layer, the projections of three bands and the two clusters' logits.
    assert len(linears) == len(list(sigma_norms(model))) == 6 * depth + 4
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    assert len(tables) == 3
    assert not any(map(parametrize.is_parametrized, tables))


def stock(name: str, **options: Any) -> Any:
    """fairseq's `transformer_lm` architecture with the dictionary of a task."""
    task = options.pop("task")
    args = Namespace(arch=name, tokens_per_sample=12, add_bos_token=False, tpu=False, **options)
    ARCH_CONFIG_REGISTRY[name](args)
    return models.build_model(args, task)


def test_full_size_is_baevski_and_aulis() -> None:
    """The 267,744 words of WikiText-103: 247 M parameters, of fairseq's names and shapes."""
    dictionary = Dictionary()
    for number in range(267_744 - len(dictionary)):
        dictionary.add_symbol(str(number))
    task = build_task(dictionary)
    cfg = OmegaConf.create(
        {
            "model": {"_name": PRELN},
            "task": {"tokens_per_sample": 512, "add_bos_token": False},
            "common": {"tpu": False},
        }
    )
    cfg.task.max_target_positions = None
    with torch.device("meta"):
        ours = models.build_model(cfg.model, task)
        theirs = stock("transformer_lm_wiki103", task=task)
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes.pop("decoder.dictionary_version") == ()
    del shapes["options_version"]
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    assert round(sum(parameter.numel() for parameter in ours.parameters()) / 1e6) == 247
    layer = ours.decoder.layers[0]
    assert layer.self_attn.head_dim == 128
    assert layer.fc1.weight.shape == (4096, 1024)
    rates = (0.3, 0.1, 0.1, 0.2)
    assert rates == (
        ours.decoder.dropout_module.p,
        layer.self_attn.dropout_module.p,
        layer.activation_dropout_module.p,
        ours.decoder.adaptive_softmax.dropout_module.p,
    )


@pytest.mark.parametrize("pad", [0, 4])
def test_plain_preln_equals_fairseqs(
    build_lm: Callable[..., Any], task: SimpleNamespace, pad: int
) -> None:
    narrow = {"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 32, "decoder_attention_heads": 4}
    cutoffs = {"adaptive_input_cutoff": "8,16", "adaptive_softmax_cutoff": "8,16"}
    torch.manual_seed(0)
    theirs = stock("transformer_lm_wiki103", task=task, **narrow, **cutoffs, **STILL).double()
    ours = build_lm(PRELN, **STILL).double()
    slow = build_lm(PRELN, no_fast_path=True, **STILL).double()
    batch = sample(pad)
    losses = []
    for model in (theirs, ours, slow):
        if model is not theirs:
            model.load_state_dict(theirs.state_dict())
        losses.append(adaptive_loss(model, batch))
        losses[-1].sum().backward()
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])
    expected = dict(theirs.named_parameters())
    for model in (ours, slow):
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name].grad, msg=name)


@pytest.mark.parametrize(("norm", "reparam"), VARIANTS)
def test_a_step_and_what_comes_after(build_lm: Callable[..., Any], norm: str, reparam: str) -> None:
    torch.manual_seed(0)
    model = build_lm("transformer_lm_postln_wiki103_16l", norm=norm, reparam=reparam, **SHALLOW)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for update in range(4):
        model.set_num_updates(update)
        loss = adaptive_loss(model, sample()).sum() / sample()["ntokens"]
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    expected = model(**sample()["net_input"])[0]
    fuse(model)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    torch.testing.assert_close(model(**sample()["net_input"])[0], expected, rtol=1e-5, atol=1e-5)


def tied_projections(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """W, by an SVD Ŵ, of the input's projection and what the softmax does to a unit vector."""
    decoder: Any = model.decoder
    width = decoder.embed_dim
    pairs = []
    for band, tail in enumerate(decoder.adaptive_softmax.tail, start=1):
        linear = decoder.embed_tokens.embeddings[band][1]
        weight = linear.weight
        if parametrize.is_parametrized(linear):
            norm, (matrix,) = next(iter(sigma_norms(linear)))
            sigma = torch.linalg.svdvals(matrix.double())[0]
            weight = norm.gamma.double() / sigma * matrix.double()
        eye = torch.eye(width, dtype=next(model.parameters()).dtype)
        pairs.append((weight.double(), tail[0](eye).double()))
    return pairs


def test_tied_tensors_stay_tied(build_lm: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_lm(NOLN, **SHALLOW)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for update in range(20):
        model.set_num_updates(update)
        optimizer.zero_grad()
        (adaptive_loss(model, sample()).sum() / sample()["ntokens"]).backward()
        optimizer.step()
    for _ in range(30):
        power_iteration(model)

    def check(model: nn.Module, tolerance: float = 1e-4) -> None:
        for used_in, used_out in tied_projections(model):
            torch.testing.assert_close(used_in, used_out, rtol=tolerance, atol=tolerance)
        decoder: Any = model.decoder
        softmax, bands = decoder.adaptive_softmax, decoder.embed_tokens.embeddings
        tables = [softmax.head.word_proj.weight, *(tail[2].weight for tail in softmax.tail)]
        assert [table.data_ptr() for table in tables] == [
            band[0].weight.data_ptr() for band in bands
        ]

    check(model)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = build_lm(NOLN, **SHALLOW)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    check(other)
    for (_, ours), (_, theirs) in zip(
        tied_projections(model), tied_projections(other), strict=True
    ):
        assert torch.equal(ours, theirs)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        next(sigma_norms(copied.decoder.embed_tokens.embeddings[1]))[0].gamma.mul_(3)
    check(copied)
    check(model)
    check(copy.deepcopy(model).half(), 1e-2)
    check(fuse(copy.deepcopy(model)))
    # Converted from outside, fairseq's own tied model keeps what it ties, plain.
    plain = build_lm(PRELN, **SHALLOW)
    convert(plain)
    check(plain)
    assert parametrize.is_parametrized(plain.decoder.layers[0].fc1)


def test_tied_tensors_stay_tied_under_fp16(build_lm: Callable[..., Any]) -> None:
    """As under --fp16 --fp16-no-flatten-grads; the flat copy asks for a GPU."""
    torch.manual_seed(0)
    model = build_lm(NOLN, **SHALLOW).half()
    cfg = OmegaConf.create(
        {
            "common": {
                "fp16_init_scale": 4,
                "fp16_scale_window": 1,
                "fp16_scale_tolerance": 0.0,
                "threshold_loss_scale": None,
                "min_loss_scale": 1e-4,
                "fp16_no_flatten_grads": True,
                "on_cpu_convert_precision": False,
                "bf16": False,
                "tpu": False,
                "model_parallel_size": 1,
            },
            "distributed_training": {"distributed_world_size": 1, "pipeline_model_parallel": False},
            "optimization": {"update_freq": [1]},
            "optimizer": {"_name": "nag", "momentum": 0.9, "weight_decay": 0.0, "lr": [0.5]},
        }
    )
    optimizer = FP16Optimizer.build_optimizer(cfg, list(model.parameters()))
    before = tied_projections(model)
    for update in range(3):
        model.set_num_updates(update)
        optimizer.zero_grad()
        optimizer.backward(adaptive_loss(model, sample()).sum() / sample()["ntokens"])
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
    for (used_in, used_out), (start, _) in zip(tied_projections(model), before, strict=True):
        torch.testing.assert_close(used_in, used_out, rtol=0.02, atol=0.02)
        assert (used_in - start).abs().max() > 0.02


def test_the_gradient_of_tied_projections_is_of_both_uses(build_lm: Callable[..., Any]) -> None:
    """Against differences of the loss in float64; u and v stay where they are."""
    torch.manual_seed(0)
    model = build_lm(NOLN, **SHALLOW).double()
    linear = model.decoder.embed_tokens.embeddings[1][1]
    original = linear.parametrizations.weight.original
    adaptive_loss(model, sample()).sum().backward()
    gradient = original.grad.clone()
    step = 1e-6
    for place in ((0, 0), (5, 2), (15, 3)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                original[place] += sign * step
                values.append(adaptive_loss(model, sample()).item())
                original[place] -= sign * step
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(
            float(gradient[place]), rel=1e-4, abs=1e-7
        )


def test_projections_can_be_left_plain(build_lm: Callable[..., Any]) -> None:
    model = build_lm(NOLN, no_reparam_projections=True, **SHALLOW)
    outside = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not parametrize.is_parametrized(module)
    ]
    assert outside == [
        "decoder.embed_tokens.embeddings.0.1",
        "decoder.embed_tokens.embeddings.1.1",
        "decoder.embed_tokens.embeddings.2.1",
        "decoder.adaptive_softmax.head.class_proj",
    ]
    assert len(list(sigma_norms(model))) == 12


def test_untied_and_narrow_projections_are_reparameterized(build_lm: Callable[..., Any]) -> None:
    options = {"tie_adaptive_proj": False, **SHALLOW}
    model = build_lm(NOLN, **options)
    for tail in model.decoder.adaptive_softmax.tail:
        assert parametrize.is_parametrized(tail[0])
    narrow = {"tie_adaptive_weights": False, "decoder_output_dim": 24}
    model = build_lm(NOLN, **options, **narrow)
    assert parametrize.is_parametrized(model.decoder.project_out_dim)
    softmax = model.decoder.adaptive_softmax
    # Matrices over the vocabulary are output embeddings.
    assert not parametrize.is_parametrized(softmax.head)
    for tail in softmax.tail:
        assert parametrize.is_parametrized(tail[0])
        assert not parametrize.is_parametrized(tail[2])
    assert adaptive_loss(model, sample()).isfinite().all()


@pytest.mark.parametrize("name", SIXTEEN_LAYERS)
def test_probabilities_sum_to_one_and_give_the_loss(
    build_lm: Callable[..., Any], name: str
) -> None:
    torch.manual_seed(0)
    model = build_lm(name, **SHALLOW).double().eval()
    batch = sample(pad=3)
    output = model(**batch["net_input"])
    probabilities = model.get_normalized_probs(output, log_probs=False)
    assert probabilities.shape == (3, 10, WORDS)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 10, dtype=torch.double))
    chosen = probabilities.gather(2, batch["target"][..., None]).squeeze(-1).log()
    expected = -chosen[batch["target"].ne(PAD)].sum()
    torch.testing.assert_close(adaptive_loss(model, batch).sum(), expected)


@pytest.mark.parametrize("name", SIXTEEN_LAYERS)
def test_a_word_depends_on_those_before_it_only(build_lm: Callable[..., Any], name: str) -> None:
    torch.manual_seed(0)
    model = build_lm(name, **SHALLOW).eval()
    before, after = tokens(), tokens()
    after[:, 6] = (after[:, 6] + 1 - 4) % (WORDS - 4) + 4
    outputs = [model(words)[0] for words in (before, after)]
    torch.testing.assert_close(outputs[0][:, :6], outputs[1][:, :6])
    assert (outputs[0][:, 6:] - outputs[1][:, 6:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize(("norm", "reparam"), VARIANTS)
def test_incremental_decoding_reorders(
    build_lm: Callable[..., Any], norm: str, reparam: str
) -> None:
    """Hypotheses change places after each word, as beam search makes them."""
    torch.manual_seed(0)
    options = {"norm": norm, "reparam": reparam, "qk_norm": norm == "noln"}
    model = build_lm("transformer_lm_postln_wiki103_16l", **options, **SHALLOW).eval()
    words = tokens(rows=4, length=8)
    state: dict[str, dict[str, Tensor | None]] = {}
    prefix = words[:, :0]
    generator = torch.Generator().manual_seed(1)
    for step in range(words.shape[1]):
        prefix = torch.cat([prefix, words[:, step : step + 1]], dim=1)
        new = model.decoder(prefix, incremental_state=state)[0]
        assert new.shape == (4, 1, 16)
        torch.testing.assert_close(new[:, 0], model(prefix)[0][:, -1], rtol=1e-4, atol=1e-5)
        order = torch.randint(0, 4, (4,), generator=generator)
        model.decoder.reorder_incremental_state_scripting(state, order)
        prefix = prefix[order]


@torch.no_grad()
def test_beam_search_finds_the_best_of_all_continuations(
    build_lm: Callable[..., Any], task: SimpleNamespace
) -> None:
    """With a beam as wide as the vocabulary, against going through all of them."""
    torch.manual_seed(0)
    model = build_lm(NOLN, **SHALLOW).eval()
    generator = SequenceGenerator(
        [model], task.target_dictionary, beam_size=WORDS, max_len=3, normalize_scores=False
    )
    prompt = torch.tensor([[7]])
    net_input = {"src_tokens": prompt, "src_lengths": torch.tensor([1])}
    found = generator.generate(
        [model], {"net_input": net_input}, prefix_tokens=prompt, bos_token=EOS
    )[0]

    def log_probability(words: list[int]) -> float:
        output = model(torch.tensor([[EOS, *words[:-1]]]))
        logs = model.get_normalized_probs(output, log_probs=True)[0]
        return float(sum(logs[place, word] for place, word in enumerate(words)))

    continuations = [[7, EOS]]
    continuations += [[7, word, EOS] for word in range(WORDS) if word not in (PAD, EOS)]
    scores = {tuple(words): log_probability(words) for words in continuations}
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:8]
    assert [tuple(hypothesis["tokens"].tolist()) for hypothesis in found[:8]] == best
    for hypothesis, words in zip(found, best, strict=False):
        assert float(hypothesis["score"]) == pytest.approx(scores[words], abs=1e-4)


def test_character_embeddings_and_plain_embeddings(build_lm: Callable[..., Any]) -> None:
    plain = {
        "adaptive_input": False,
        "tie_adaptive_weights": False,
        "tie_adaptive_proj": False,
        "adaptive_softmax_cutoff": None,
        "adaptive_input_cutoff": "20000,60000",  # the architecture's, of no matter here
    }
    shared = build_lm(NOLN, **SHALLOW, **plain, share_decoder_input_output_embed=True)
    assert shared.decoder.output_projection.weight is shared.decoder.embed_tokens.weight
    assert shared(tokens())[0].shape == (3, 10, WORDS)
    letters = build_lm(
        NOLN,
        **SHALLOW,
        **plain,
        character_embeddings=True,
        character_filters="[(1, 8), (2, 8)]",
    )
    assert letters(tokens())[0].shape == (3, 10, WORDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reparam": "none"}, "--no-reparam-projections needs a --reparam other than none"),
        ({"adaptive_input_cutoff": None}, "--adaptive-input needs --adaptive-input-cutoff"),
        (
            {"adaptive_input_cutoff": "8,24", "adaptive_softmax_cutoff": "8,24"},
            "--adaptive-input-cutoff 8,24 does not rise from above 0 to below the 24 words of the "
            "dictionary",
        ),
        (
            {"adaptive_softmax_cutoff": "16,8"},
            "--adaptive-softmax-cutoff 16,8 does not rise from above 0 to below the 24 words of "
            "the dictionary",
        ),
        (
            {"adaptive_softmax_cutoff": "8"},
            "--tie-adaptive-weights needs --adaptive-input of the same cutoff and factor as the "
            "adaptive softmax's, and an input and an output as wide as the decoder",
        ),
        (
            {"character_embeddings": True},
            "--tie-adaptive-weights needs --adaptive-input of the same cutoff and factor as the "
            "adaptive softmax's, and an input and an output as wide as the decoder",
        ),
        (
            {"decoder_embed_dim": 8},
            "--adaptive-input-factor 4 leaves a width of 0 to the last of 3 bands, of 8 to the "
            "first; allowed: a smaller one, or fewer numbers in --adaptive-input-cutoff",
        ),
        (
            {"tie_adaptive_weights": False, "decoder_output_dim": 8},
            "--adaptive-softmax-factor 4 leaves a width of 0 to the last of 3 bands, of 8 to the "
            "first; allowed: a smaller one, or fewer numbers in --adaptive-softmax-cutoff",
        ),
        (
            {"adaptive_softmax_cutoff": None, "share_decoder_input_output_embed": True},
            "--share-decoder-input-output-embed needs one table of embeddings: neither "
            "--adaptive-input nor --character-embeddings",
        ),
        (
            {"character_embeddings": True, "decoder_layers_to_keep": "0"},
            "--character-embeddings contradicts --decoder-layers-to-keep",
        ),
        (
            {"adaptive_input": False, "quant_noise_pq": 0.1, "decoder_input_dim": 12},
            "--quant-noise-pq needs a --decoder-input-dim of 16, as wide as the decoder, not 12",
        ),
        ({"scale_fc": True}, "--scale-fc contradicts --norm noln, which has no LayerNorm"),
        ({"scale_attn": True}, "--scale-attn contradicts --norm noln, which has no LayerNorm"),
    ],
)
def test_contradictions_are_named(
    build_lm: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        build_lm(NOLN, no_reparam_projections=True, **options)


def test_an_unknown_token_is_named(build_lm: Callable[..., Any]) -> None:
    model = build_lm(NOLN, **SHALLOW)
    message = "token 24 is not one of the 24 of the dictionary: the data were binarised with"
    batch = sample()
    batch["net_input"]["src_tokens"][1, 3] = WORDS
    with pytest.raises(ValueError, match=message):
        adaptive_loss(model, batch)
    batch = sample()
    batch["target"][-1, -1] = WORDS  # no later word's context
    with pytest.raises(ValueError, match=message):
        adaptive_loss(model, batch)


def test_a_state_of_another_dictionary_is_named(build_lm: Callable[..., Any]) -> None:
    model = build_lm(NOLN, **SHALLOW)
    state = model.state_dict()
    name = "decoder.embed_tokens.embeddings.2.0.weight"
    state[name] = torch.cat([state[name], state[name][:3]])
    with pytest.raises(ValueError, match=r"of a dictionary of 27 words, the data's has 24: take"):
        model.load_state_dict(state)


def test_a_state_of_as_many_other_words_is_named(build_lm: Callable[..., Any]) -> None:
    model = build_lm(NOLN, **SHALLOW)
    state = model.state_dict()
    other = Dictionary()
    for number in reversed(range(20)):  # the same words in another order
        other.add_symbol(f"w{number}")
    assert len(other) == WORDS
    elsewhere = build_lm(NOLN, of=build_task(other), **SHALLOW)
    with pytest.raises(ValueError, match="of as many other words as the data's, or of another"):
        elsewhere.load_state_dict(state)
    model.load_state_dict(state)


def test_an_empty_split_is_named(
    build_lm: Callable[..., Any], task: SimpleNamespace, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "train.bin").write_bytes(b"\0\0")
    monkeypatch.setattr(task.args, "data", str(tmp_path))
    build_lm(NOLN, **SHALLOW)
    (tmp_path / "valid.bin").touch()
    with pytest.raises(ValueError, match=r"valid\.bin is empty: the split has no text"):
        build_lm(NOLN, **SHALLOW)


def inference(block: int, window: int) -> Any:
    """fairseq-eval-lm's config, whose task has the block without the window."""
    return OmegaConf.create(
        {
            "eval_lm": {"context_window": window},
            "task": {"tokens_per_sample": block - window},
            "generation": {},
        }
    )


def test_context_window_and_block_have_to_fit(build_lm: Callable[..., Any]) -> None:
    model = build_lm(NOLN, **SHALLOW)
    for window in (8, 9):
        with pytest.raises(
            ValueError,
            match=f"^--context-window {window} leaves nothing to predict of a block of "
            "--tokens-per-sample 8$",
        ):
            model.prepare_for_inference_(inference(8, window))
    with pytest.raises(
        ValueError,
        match=r"^--tokens-per-sample 13 is more than the 12 tokens that the model was made for$",
    ):
        model.prepare_for_inference_(inference(13, 6))
    model.prepare_for_inference_(inference(12, 6))
    assert not list(sigma_norms(model))


def test_sigma_reparam_starts_from_fairseqs_weights(build_lm: Callable[..., Any]) -> None:
    """Appendix I: in language models, the baseline's own."""

    def weights(**options: Any) -> dict[str, Tensor]:
        torch.manual_seed(3)
        model = build_lm("transformer_lm_postln_wiki103_16l", norm="noln", **SHALLOW, **options)
        return {
            name.replace("parametrizations.weight.original", "weight"): value
            for name, value in model.named_parameters()
        }

    plain, sigma = weights(), weights(reparam="sigma")
    for name, value in plain.items():
        assert torch.equal(sigma[name], value), name
    small = weights(reparam="sigma", reparam_init_std=1e-3)
    for name in plain:
        drawn = "embeddings" not in name or name.endswith(".1.weight")
        if drawn and name.endswith("weight"):
            assert 0.5e-3 < small[name].std().item() < 1.5e-3, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(build_lm: Callable[..., Any], dtype: torch.dtype) -> None:
    """As under --amp, where fairseq's adaptive input by itself writes halves into fp32."""
    torch.manual_seed(0)
    model = build_lm(NOLN, **SHALLOW)
    model.set_num_updates(1)
    batch = sample()
    expected = adaptive_loss(model, batch).sum()
    with torch.autocast("cpu", dtype):
        loss = adaptive_loss(model, batch).sum()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert all(norm.gamma.grad is not None for norm, _ in sigma_norms(model))
