"""Fused checkpoints, in stock fairseq without the plugin and as plain models of the plugin."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils

from sigma_fairseq.checkpoints.files import CheckpointError
from sigma_fairseq.checkpoints.fuse import Fused, fuse_checkpoint
from tests.checkpoints import commands
from tests.checkpoints.commands import LANGUAGE_MODEL, TRANSLATION, hypotheses, run, train
from tests.speech.corpus import write_corpus

ADAM = ("--optimizer", "adam", "--lr", "0.01", "--max-update", "4")
POSTLN = (
    *TRANSLATION,
    # Shared embeddings and σ; in the file a namespace, the monitors' criterion and numpy counts.
    *("--arch", "transformer_reparam_postln_6l", "--reparam-qkv", "qk", "--gamma-lr-scale", "3"),
    *("--share-all-embeddings", "--criterion", "monitored_label_smoothed_cross_entropy"),
    *("--label-smoothing", "0.2", "--optimizer", "adagrad", "--lr", "0.1", "--max-update", "4"),
    *("--eval-bleu", "--eval-bleu-args", '{"beam": 1}'),
)
PRELN = (*TRANSLATION, *ADAM, "--arch", "transformer_preln_6l", "--reparam", "sigma")
EVALUATION = ("--cpu", "--tokens-per-sample", "16")
GENERATION = ("--cpu", "--required-batch-size-multiple", "1", "--beam", "3", "--nbest", "3")
#: Speech has dropout of its own, which evaluation is without.
SPEECH = (
    *("--task", "ctc_speech", "--arch", "ctc_transformer_reparam_noln_36l", "--reparam-conv"),
    *("--encoder-layers", "2", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32"),
    *("--criterion", "ctc", "--zero-infinity", "--train-subset", "train", "--valid-subset", "dev"),
    "--disable-validation",
)


@pytest.fixture(scope="module")
def checkpoints(
    data_bin: Path, text_bin: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Trained models of which stock fairseq has the architecture."""
    folder = tmp_path_factory.mktemp("trained")
    language = (*LANGUAGE_MODEL, *ADAM, "--criterion", "monitored_adaptive_loss")
    language += ("--arch", "transformer_lm_preln_wiki103_16l", "--reparam", "sigma")
    return {
        "postln": train(data_bin, folder / "postln", *POSTLN),
        "preln": train(data_bin, folder / "preln", *PRELN),
        "lm": train(text_bin, folder / "lm", *language),
    }


@pytest.fixture(scope="module")
def fused(checkpoints: dict[str, Path]) -> dict[str, Path]:
    """The same, fused."""
    files = {name: path.with_name("fused.pt") for name, path in checkpoints.items()}
    for name, path in checkpoints.items():
        assert fuse_checkpoint(str(path), str(files[name])).lacking is None
    return files


@pytest.fixture(scope="module")
def stock(data_bin: Path, text_bin: Path, fused: dict[str, Path]) -> Any:
    """What fairseq's commands return for the fused checkpoints in a process without the plugin."""
    work = []
    for name in ("postln", "preln"):
        results = ("--path", str(fused[name]), "--results-path", str(fused[name].parent / "stock"))
        work.append(("generate", str(data_bin), *GENERATION, *results))
    work.append(("eval_lm", str(text_bin), *EVALUATION, "--path", str(fused["lm"])))
    validation = ("--task", "translation", "--cpu", "--batch-size", "8")
    work.append(("validate", str(data_bin), "--path", str(fused["postln"]), *validation))
    onwards = ("--arch", "transformer", "--share-all-embeddings", "--reset-optimizer", *ADAM)
    onwards += ("--restore-file", str(fused["postln"]), "--max-epoch", "2")
    saved = ("--save-dir", str(fused["postln"].parent / "onwards"))
    work.append(("train", str(data_bin), *commands.TRAINING, *TRANSLATION, *onwards, *saved))
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", commands.__file__],
        input=json.dumps(work),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["postln", "preln"])
def test_stock_fairseq_generates_the_same(
    name: str, checkpoints: dict[str, Path], stock: Any, data_bin: Path, tmp_path: Path
) -> None:
    results = ("--path", str(checkpoints[name]), "--results-path", str(tmp_path))
    run("generate", str(data_bin), *GENERATION, *results)
    ours, theirs = hypotheses(tmp_path), hypotheses(checkpoints[name].parent / "stock")
    assert len(ours) == 20 * 3 * 2
    assert len(set(line.split("\t")[2] for line in ours)) > 1
    for one, other in zip(ours, theirs, strict=True):
        assert one.split("\t")[::2] == other.split("\t")[::2]
        assert float(one.split("\t")[1]) == pytest.approx(float(other.split("\t")[1]), abs=1e-5)


def test_stock_fairseq_has_the_same_perplexity(
    checkpoints: dict[str, Path], stock: Any, text_bin: Path
) -> None:
    ours = run("eval_lm", str(text_bin), *EVALUATION, "--path", str(checkpoints["lm"]))
    assert ours["loss"] > 1
    assert stock[2]["loss"] == pytest.approx(float(ours["loss"]), abs=1e-6)


def test_stock_fairseq_trains_on(fused: dict[str, Path], stock: Any) -> None:
    state = torch.load(fused["postln"].parent / "onwards/checkpoint_last.pt", weights_only=False)
    # Four updates after those of the first training, in the same epoch.
    assert state["extra_state"]["train_iterator"]["iterations_in_epoch"] == 8
    before = torch.load(fused["postln"], weights_only=True)["model"]
    assert state["model"].keys() == before.keys()


def test_weights_are_the_effective_ones(
    checkpoints: dict[str, Path], fused: dict[str, Path]
) -> None:
    before = torch.load(checkpoints["preln"], weights_only=True)["model"]
    after = torch.load(fused["preln"], weights_only=True)["model"]
    originals = [name for name in before if name.endswith("original")]
    assert len(originals) == 2 * 6 + 10
    for name in originals:
        prefix = name.removesuffix("original")
        weight, gamma, u, v = (
            before[prefix + part].double().numpy() for part in ("original", "0.gamma", "0.u", "0.v")
        )
        expected = gamma / (u @ weight @ v) * weight
        plain = after[name.replace("parametrizations.weight.original", "weight")]
        np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-7)
    assert not any("parametrizations" in name for name in after)


def outputs(path: Path, inputs: dict[str, Any]) -> torch.Tensor:
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    with torch.no_grad():
        output = model.eval()(**inputs)
    logits: torch.Tensor = output["encoder_out"] if isinstance(output, dict) else output[0]
    return logits


def test_what_stock_fairseq_has_not_got_stays_with_the_plugin(
    data_bin: Path, tmp_path: Path
) -> None:
    noln = ("--arch", "transformer_reparam_noln_6l", *TRANSLATION, *ADAM)
    trained = train(data_bin, tmp_path, *noln, "--gamma-lr-scale", "2", "--reparam-init-std", "0.2")
    out = tmp_path / "fused.pt"
    fused = fuse_checkpoint(str(trained), str(out))
    assert fused == Fused("translation", str(data_bin), "--norm noln")
    tokens = torch.tensor([[4, 5, 6, 2]])
    inputs = {"src_tokens": tokens, "src_lengths": torch.tensor([4]), "prev_output_tokens": tokens}
    torch.testing.assert_close(outputs(out, inputs), outputs(trained, inputs))
    state = torch.load(out, weights_only=True)
    assert state["cfg"]["model"]["reparam"] == "none"
    assert not any("parametrizations" in name for name in state["model"])
    assert "last_optimizer_state" not in state
    plain = ("--arch", "transformer_reparam_noln_6l", "--reparam", "none", *TRANSLATION, *ADAM)
    train(data_bin, tmp_path / "tuned", *plain, "--finetune-from-model", str(out))
    with pytest.raises(CheckpointError, match="has plain weights: there is nothing to fuse"):
        fuse_checkpoint(str(out), str(tmp_path / "again.pt"))


@pytest.mark.parametrize(
    "reparam", [("--reparam-qkv", "qkv"), ("--reparam", "weight_norm", "--reparam-qkv", "separate")]
)
def test_speech(reparam: tuple[str, ...], tmp_path: Path) -> None:
    write_corpus(tmp_path / "data", {"train": 2})
    trained = train(tmp_path / "data", tmp_path, *SPEECH, *ADAM, *reparam, "--max-update", "1")
    out = tmp_path / "fused.pt"
    assert fuse_checkpoint(str(trained), str(out)).lacking == "models of speech like it"
    inputs = {"source": torch.randn(1, 50, 80), "padding_mask": None}
    torch.testing.assert_close(outputs(out, inputs), outputs(trained, inputs))
    assert not any("parametrizations" in name for name in torch.load(out)["model"])


@pytest.mark.parametrize(
    ("option", "lacking"),
    [
        (("--qk-norm",), "--qk-norm"),
        (("--attention-temperature", "0.5"), "--attention-temperature"),
    ],
)
def test_options_of_ours_need_the_plugin(
    option: tuple[str, ...], lacking: str, data_bin: Path, tmp_path: Path
) -> None:
    trained = train(data_bin, tmp_path, *PRELN, *option, "--max-update", "1")
    out = tmp_path / "fused.pt"
    assert fuse_checkpoint(str(trained), str(out)).lacking == lacking
    tokens = torch.tensor([[4, 5, 6, 2]])
    inputs = {"src_tokens": tokens, "src_lengths": torch.tensor([4]), "prev_output_tokens": tokens}
    torch.testing.assert_close(outputs(out, inputs), outputs(trained, inputs))


class Payload:
    """What would, unpickled, write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def truncated(path: Path, folder: Path) -> Path:
    short = folder / "short.pt"
    short.write_bytes(path.read_bytes()[:2000])
    return short


def dangerous(path: Path, folder: Path) -> Path:
    torch.save({"model": Payload(folder / "touched")}, folder / "bad.pt")
    return folder / "bad.pt"


def foreign(path: Path, folder: Path) -> Path:
    torch.save({"weights": torch.ones(2)}, folder / "foreign.pt")
    return folder / "foreign.pt"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path, folder: folder / "none.pt", r"none\.pt is not a file"),
        (truncated, r"short\.pt is not a checkpoint to read: \w+"),
        (dangerous, r"bad\.pt is not a checkpoint to read: Unsupported .*"),
        (foreign, r"foreign\.pt is not a checkpoint of fairseq"),
        (lambda path, folder: path.with_name("fused.pt"), "is of fairseq's own transformer: .*"),
    ],
)
def test_what_cannot_be_fused(
    spoil: Callable[[Path, Path], Path],
    message: str,
    fused: dict[str, Path],
    checkpoints: dict[str, Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        fuse_checkpoint(str(spoil(checkpoints["preln"], tmp_path)), str(tmp_path / "out.pt"))
    assert "\n" not in str(raised.value)
    assert "safe_globals" not in str(raised.value)
    assert not (tmp_path / "touched").exists()
    assert not (tmp_path / "out.pt").exists()


def test_data_elsewhere(
    checkpoints: dict[str, Path], data_bin: Path, text_bin: Path, tmp_path: Path
) -> None:
    state = torch.load(checkpoints["preln"], weights_only=True)
    state["cfg"]["task"]["data"] = str(tmp_path / "gone")
    moved = tmp_path / "moved.pt"
    torch.save(state, moved)
    out = tmp_path / "out.pt"
    with pytest.raises(CheckpointError, match=r"gone is not a folder: --data DIR says where"):
        fuse_checkpoint(str(moved), str(out))
    with pytest.raises(CheckpointError, match=r"moved\.pt does not load with the data in .*"):
        fuse_checkpoint(str(moved), str(out), data=str(text_bin))
    assert fuse_checkpoint(str(moved), str(out), data=str(data_bin)).data == str(data_bin)


def test_no_file_is_overwritten(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = checkpoints["preln"]
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"checkpoint_last\.pt exists already"):
        fuse_checkpoint(str(path), str(path))
    assert path.read_bytes() == before
    with pytest.raises(CheckpointError, match="nowhere is not a folder to write to"):
        fuse_checkpoint(str(path), str(tmp_path / "nowhere/out.pt"))


def test_a_full_disk_leaves_nothing(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left on device"):
        fuse_checkpoint(str(checkpoints["preln"]), str(tmp_path / "out.pt"))
    assert not list(tmp_path.iterdir())
