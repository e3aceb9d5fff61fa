"""Imported checkpoints of stock fairseq: the same function, fine-tuned, and fused back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils, options
from torch import Tensor

from sigma_fairseq.checkpoints.files import CheckpointError
from sigma_fairseq.checkpoints.fuse import fuse_checkpoint
from sigma_fairseq.checkpoints.import_stock import import_checkpoint
from sigma_fairseq.reparam import sigma_norms
from tests.checkpoints.commands import LANGUAGE_MODEL, PARSERS, TRANSLATION, train

ADAM = ("--optimizer", "adam", "--lr", "0.01", "--max-update", "3")
POSTLN = (*TRANSLATION, *ADAM, "--arch", "transformer", "--share-all-embeddings")
PRELN = (
    *("--encoder-normalize-before", "--decoder-normalize-before", "--activation-fn", "gelu"),
    *(*TRANSLATION, *ADAM, "--arch", "transformer_iwslt_de_en", "--decoder-learned-pos"),
    *("--decoder-embed-dim", "24"),
)
LM = (*LANGUAGE_MODEL, *ADAM, "--arch", "transformer_lm", "--decoder-normalize-before")
LM += ("--criterion", "adaptive_loss", "--decoder-input-dim", "16", "--decoder-output-dim", "16")
DEPTHS = {"encoder_layers": 2, "decoder_layers": 1}
#: Stock checkpoint → how it is imported.
IMPORTS: dict[str, dict[str, Any]] = {
    "postln": {"arch": "transformer_reparam_postln_6l", "depths": DEPTHS, "qkv": "qk"},
    "preln": {"arch": "transformer_preln_6l", "depths": DEPTHS},
    "old": {"arch": "transformer_postln_6l", "depths": DEPTHS, "qkv": "qkv"},
    "lm": {"arch": "transformer_lm_preln_wiki103_16l", "depths": {"decoder_layers": 2}},
}


def with_namespace(checkpoint: Path, data: Path, *args: str) -> Path:
    """The checkpoint as fairseq saved it before it had a config: with the command line in it."""
    state = torch.load(checkpoint, weights_only=True)
    state["args"] = options.parse_args_and_arch(PARSERS["train"](), [str(data), *args])
    state["cfg"] = None
    old = checkpoint.with_name("old.pt")
    torch.save(state, old)
    return old


@pytest.fixture(scope="module")
def stock(
    data_bin: Path, text_bin: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Checkpoints that fairseq's own architectures were trained to."""
    folder = tmp_path_factory.mktemp("stock")
    paths = {
        "postln": train(data_bin, folder / "postln", *POSTLN),
        "preln": train(data_bin, folder / "preln", *PRELN),
        "lm": train(text_bin, folder / "lm", *LM),
    }
    return {**paths, "old": with_namespace(paths["postln"], data_bin, *POSTLN)}


@pytest.fixture(scope="module")
def imported(stock: dict[str, Path]) -> dict[str, tuple[Path, list[str]]]:
    """The same with σReparam, with the options that fairseq-train needs."""
    found = {}
    for name, path in stock.items():
        out = path.with_name(f"{name}_imported.pt")
        found[name] = (out, import_checkpoint(str(path), str(out), **IMPORTS[name]).options)
    return found


def load(path: Path) -> Any:
    return checkpoint_utils.load_model_ensemble_and_task([str(path)])[0][0]


def logits(model: Any) -> Tensor:
    tokens = torch.tensor([[4, 5, 6, 7, 2], [9, 8, 7, 2, 1]])
    lengths = torch.tensor([5, 4])
    arguments = (tokens, lengths, tokens) if hasattr(model, "encoder") else (tokens,)
    with torch.no_grad():
        output = model.eval()(*arguments)
        scores: Tensor = model.get_normalized_probs(output, True, {"target": tokens})
    return scores


@pytest.mark.parametrize("name", IMPORTS)
def test_it_computes_the_same_before_and_after_power_iteration(
    name: str, stock: dict[str, Path], imported: dict[str, tuple[Path, list[str]]]
) -> None:
    expected, model = logits(load(stock[name])), load(imported[name][0])
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    model.train()
    for update in range(3):
        model.set_num_updates(update)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", IMPORTS)
def test_gamma_is_the_spectral_norm(name: str, imported: dict[str, tuple[Path, list[str]]]) -> None:
    norms = list(sigma_norms(load(imported[name][0])))
    assert len(norms) == {"postln": 18, "preln": 22, "old": 14, "lm": 16}[name]
    for norm, stack in norms:
        exact = torch.linalg.svdvals(torch.cat(stack).detach().double().flatten(1))[0]
        assert norm.gamma.item() == pytest.approx(float(exact), rel=1e-5)


def first_loss(data: Path, save_dir: Path, *args: str) -> float:
    """The mean loss of the one update of a training."""
    state = torch.load(train(data, save_dir, *args, "--max-update", "1"), weights_only=True)
    meters = {name: meter for _, name, _, meter in state["extra_state"]["metrics"]["train"]}
    return float(meters["loss"]["sum"] / meters["loss"]["count"])


@pytest.mark.parametrize(("name", "args"), [("postln", POSTLN), ("preln", PRELN), ("lm", LM)])
def test_fine_tuning_starts_from_the_same_loss(
    name: str,
    args: tuple[str, ...],
    stock: dict[str, Path],
    imported: dict[str, tuple[Path, list[str]]],
    data_bin: Path,
    text_bin: Path,
    tmp_path: Path,
) -> None:
    data = text_bin if name == "lm" else data_bin
    tuned = (*args, "--finetune-from-model", str(stock[name]))
    path, build = imported[name]
    # The criterion and the optimizer of the first training, the printed options for the model.
    ours = (*ADAM, "--ddp-backend", "legacy_ddp", "--finetune-from-model", str(path), *build)
    criterion = ("--criterion", "adaptive_loss" if name == "lm" else "cross_entropy")
    theirs = first_loss(data, tmp_path / "stock", *tuned)
    assert first_loss(data, tmp_path / "ours", *ours, *criterion) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("name", IMPORTS)
def test_fusing_gives_the_weights_back(
    name: str, stock: dict[str, Path], imported: dict[str, tuple[Path, list[str]]], tmp_path: Path
) -> None:
    assert fuse_checkpoint(str(imported[name][0]), str(tmp_path / "fused.pt")).lacking is None
    before = torch.load(stock[name], weights_only=True)["model"]
    after = torch.load(tmp_path / "fused.pt", weights_only=True)["model"]
    assert after.keys() == before.keys()
    # A buffer that says of which type positions are, and is never written.
    for key in {key for key in before if not key.endswith("_float_tensor")}:
        torch.testing.assert_close(after[key], before[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "postln",
            {"arch": "transformer_preln_6l"},
            "--norm is preln by --arch transformer_preln_6l, and postln in the checkpoint",
        ),
        (
            "preln",
            {"arch": "transformer_preln_18l"},
            "--encoder-layers is 18 by --arch transformer_preln_18l, and 2 in the checkpoint",
        ),
        (
            "preln",
            {"arch": "transformer_preln_6l", "depths": {"encoder_layers": 2}},
            "--decoder-layers is 6 by --arch transformer_preln_6l, and 1 in the checkpoint",
        ),
        (
            "lm",
            {"arch": "transformer_preln_6l"},
            "--arch transformer_preln_6l is not one of ours that a TransformerLanguageModel can be",
        ),
        (
            "preln",
            {"arch": "transformer_preln_6l", "depths": DEPTHS, "qkv": "qkv"},
            "cannot be imported: --reparam-qkv qkv needs an encoder as wide as the decoder, not",
        ),
        (
            "postln",
            {"arch": "transformer_reparam_noln_6l"},
            "--arch transformer_reparam_noln_6l is not one of ours that a TransformerModel can be",
        ),
        ("postln", {"arch": "transformer"}, "allowed: transformer_postln_6l, "),
    ],
)
def test_what_does_not_fit_is_named(
    name: str,
    arguments: dict[str, Any],
    message: str,
    stock: dict[str, Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(CheckpointError) as raised:
        import_checkpoint(str(stock[name]), str(tmp_path / "out.pt"), **arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_an_option_that_no_command_can_unset(text_bin: Path, tmp_path: Path) -> None:
    options = ("--task", "language_modeling", "--tokens-per-sample", "16", *ADAM)
    options += ("--arch", "transformer_lm", "--decoder-normalize-before", "--decoder-layers", "1")
    options += ("--decoder-embed-dim", "8", "--decoder-output-dim", "8", "--decoder-input-dim", "8")
    trained = train(text_bin, tmp_path, *options, "--max-update", "1")
    arguments: dict[str, Any] = {"arch": "transformer_lm_preln_wiki103_16l"}
    with pytest.raises(CheckpointError, match="--no-decoder-final-norm is set by --arch trans"):
        import_checkpoint(
            str(trained), str(tmp_path / "out.pt"), **arguments, depths={"decoder_layers": 1}
        )


def test_ours_are_not_imported_twice(
    imported: dict[str, tuple[Path, list[str]]], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is of transformer_preln_6l, not of fairseq's own"):
        import_checkpoint(str(imported["preln"][0]), str(tmp_path / "out.pt"), **IMPORTS["preln"])
