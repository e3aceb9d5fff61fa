"""Training, resuming, generating and validating through fairseq's own commands."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import USER_DIR

Fairseq = Callable[..., "subprocess.CompletedProcess[str]"]

NARROW = (
    *("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32", "--share-all-embeddings"),
    *("--encoder-attention-heads", "4", "--decoder-attention-heads", "4"),
)
TRAINING = (
    *("--optimizer", "adam", "--lr", "3e-3", "--criterion", "label_smoothed_cross_entropy"),
    *("--label-smoothing", "0.1", "--batch-size", "16", "--update-freq", "2", "--seed", "7"),
    *("--num-workers", "0", "--no-progress-bar", "--log-format", "json", "--log-interval", "1"),
)
RESUMED = (
    *("--arch", "transformer_reparam_deepnorm_6l", "--encoder-layers", "2"),
    *("--decoder-layers", "2", "--reparam-qkv", "qk", "--gamma-lr-scale", "2"),
    *("--encoder-layerdrop", "0.2", "--checkpoint-activations"),
)


def train(fairseq: Fairseq, data_bin: Path, save_dir: Path, *args: str, check: bool = True) -> Any:
    common = (str(data_bin), "--user-dir", USER_DIR, "--cpu", "--save-dir", str(save_dir))
    return fairseq("train", *common, *NARROW, *TRAINING, *args, check=check)


def losses(result: "subprocess.CompletedProcess[str]") -> dict[int, str]:
    """The training loss of every update, as logged."""
    logged = re.findall(r"\btrain_inner\b[^{]*(\{.*\})$", result.stdout + result.stderr, re.M)
    return {int(line["num_updates"]): line["loss"] for line in map(json.loads, logged)}


@pytest.fixture(scope="module")
def trained(fairseq: Fairseq, data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(save directory, losses) of 14 updates without a stop: one epoch and a half."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, losses(train(fairseq, data_bin, folder, *RESUMED, "--max-update", "14"))


def test_resumed_training_is_the_same_digit_for_digit(
    fairseq: Fairseq, data_bin: Path, trained: tuple[Path, dict[int, str]], tmp_path: Path
) -> None:
    folder, whole = trained
    first = losses(train(fairseq, data_bin, tmp_path, *RESUMED, "--max-update", "6"))
    second = losses(train(fairseq, data_bin, tmp_path, *RESUMED, "--max-update", "14"))
    assert list(second) == list(range(7, 15))
    assert {**first, **second} == whole
    states = [
        torch.load(path / "checkpoint_last.pt", weights_only=True)["model"]
        for path in (folder, tmp_path)
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    ends = {name.rsplit(".", 1)[-1] for name in states[0]}
    assert {"gamma", "u", "v", "original"} <= ends


def test_generate_interactive_and_validate(
    fairseq: Fairseq, data_bin: Path, trained: tuple[Path, Any], tmp_path: Path
) -> None:
    model = ("--path", str(trained[0] / "checkpoint_last.pt"), "--user-dir", USER_DIR, "--cpu")
    # fairseq drops a last batch of another size than a multiple of this, 8 by default.
    model += ("--required-batch-size-multiple", "1")
    generated = fairseq("generate", str(data_bin), *model, "--beam", "3", "--batch-size", "8")
    assert len(re.findall(r"^H-\d+\t", generated.stdout, re.M)) == 20
    assert "Generate test with beam=3: BLEU4" in generated.stdout

    (tmp_path / "input").write_text("a b c\nh g\n")
    interactive = fairseq(
        "interactive", str(data_bin), *model, "--input", str(tmp_path / "input"), "--beam", "2"
    )
    assert len(re.findall(r"^H-\d+\t", interactive.stdout, re.M)) == 2

    arguments = ("--task", "translation", "--valid-subset", "valid", "--batch-size", "8")
    validated = fairseq("validate", str(data_bin), *model, *arguments)
    assert re.search(r"valid on 'valid' subset \| loss \d", validated.stdout + validated.stderr)


def test_a_checkpoint_that_runs_code_is_refused(
    fairseq: Fairseq, data_bin: Path, tmp_path: Path
) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"model": Payload()}, tmp_path / "bad.pt")
    result = fairseq(
        "generate",
        *(str(data_bin), "--path", str(tmp_path / "bad.pt"), "--user-dir", USER_DIR, "--cpu"),
        check=False,
    )
    assert result.returncode != 0
    assert re.search(r"Weights only load failed", result.stderr)
    assert re.search(r"unsupported GLOBAL \w+\.system", result.stderr)
    assert not (tmp_path / "ran").exists()


def test_checkpoints_with_namespaces_and_numpy_counts_load(
    fairseq: Fairseq, data_bin: Path, tmp_path: Path
) -> None:
    """Adagrad has no config dataclass in fairseq, and --eval-bleu leaves arrays in the meters."""
    options = (
        *("--arch", "transformer_reparam_postln_6l", "--encoder-layers", "1"),
        *("--decoder-layers", "1", "--optimizer", "adagrad", "--gamma-lr-scale", "2"),
        *("--eval-bleu", "--eval-bleu-args", '{"beam": 1}', "--best-checkpoint-metric", "bleu"),
        "--maximize-best-checkpoint-metric",
    )
    train(fairseq, data_bin, tmp_path, *options, "--max-update", "2")
    resumed = train(fairseq, data_bin, tmp_path, *options, "--max-update", "3")
    assert list(losses(resumed)) == [3]


def test_options_are_on_the_command_line_and_contradictions_are_one_line(
    fairseq: Fairseq, data_bin: Path, tmp_path: Path
) -> None:
    contradiction = ("--arch", "transformer_postln_6l", "--reparam-qkv", "qkv")
    result = train(fairseq, data_bin, tmp_path, *contradiction, check=False)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last == "ValueError: --reparam-qkv qkv needs --reparam sigma, not --reparam none"

    unknown = ("--arch", "transformer_postln_6l", "--norm", "rmsnorm")
    result = train(fairseq, data_bin, tmp_path, *unknown, check=False)
    assert result.returncode != 0
    assert "choose from 'postln', 'preln', 'deepnorm', 'noln'" in result.stderr
    for option in ("norm", "reparam", "reparam-init-std", "reparam-qkv", "gamma-lr-scale"):
        assert f"--{option} " in result.stderr, option  # in the usage argparse prints with it
    assert not list(tmp_path.iterdir())


def test_hydra_gives_the_losses_of_the_command_line(
    fairseq: Fairseq, data_bin: Path, trained: tuple[Path, dict[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "narrow.yaml").write_text(f"""
# @package _group_
common: {{user_dir: {USER_DIR}, cpu: true, seed: 7, log_format: json, log_interval: 1,
  no_progress_bar: true}}
task: {{_name: translation, data: {data_bin}}}
model:
  _name: transformer_reparam_deepnorm_6l
  encoder_layers: 2
  decoder_layers: 2
  encoder_embed_dim: 16
  encoder_ffn_embed_dim: 32
  encoder_attention_heads: 4
  decoder_attention_heads: 4
  encoder_layerdrop: 0.2
  share_all_embeddings: true
  reparam_qkv: qk
  gamma_lr_scale: 2
  checkpoint_activations: true
criterion: {{_name: label_smoothed_cross_entropy, label_smoothing: 0.1}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
optimization: {{lr: [3e-3], update_freq: [2], max_update: 3}}
dataset: {{batch_size: 16, num_workers: 0}}
checkpoint: {{no_save: true}}
""")
    result = fairseq(
        "hydra_train",
        *("--config-dir", str(tmp_path), "--config-name", "narrow"),
        f"hydra.run.dir={tmp_path}",
    )
    result.stdout += (tmp_path / "hydra_train.log").read_text()
    assert losses(result) == {update: trained[1][update] for update in (1, 2, 3)}


def test_importing_the_plugin_registers_everything() -> None:
    code = (
        "import sigma_fairseq\n"
        "from fairseq.models import ARCH_MODEL_REGISTRY as registry\n"
        "assert 'transformer_reparam_noln_100l' in registry\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
