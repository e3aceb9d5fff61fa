"""Language models through fairseq's own commands: trained, resumed, sampled, refused."""

import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import USER_DIR, run_fairseq, train_on_two_workers, up_to_signs

Fairseq = Callable[..., "subprocess.CompletedProcess[str]"]

TRAINING = (
    *("--user-dir", USER_DIR, "--task", "language_modeling", "--cpu", "--seed", "7"),
    *("--arch", "transformer_lm_reparam_noln_wiki103_16l", "--decoder-layers", "2"),
    *("--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "32"),
    *("--decoder-attention-heads", "4", "--gamma-lr-scale", "2"),
    # Flags that the architecture has by itself, given once more.
    *("--adaptive-input", "--tie-adaptive-weights", "--tie-adaptive-proj"),
    *("--adaptive-input-cutoff", "8,16", "--adaptive-softmax-cutoff", "8,16"),
    *("--dropout", "0", "--attention-dropout", "0", "--activation-dropout", "0"),
    *("--adaptive-softmax-dropout", "0"),
    *("--criterion", "monitored_adaptive_loss", "--monitor-interval", "1"),
    *("--ddp-backend", "legacy_ddp", "--tokens-per-sample", "16"),
    *("--optimizer", "nag", "--lr", "1", "--weight-decay", "1e-4", "--clip-norm", "0.1"),
    *("--lr-scheduler", "cosine", "--warmup-updates", "2", "--lr-period-updates", "20"),
    *("--required-batch-size-multiple", "1", "--num-workers", "0"),
    *("--log-format", "json", "--log-interval", "1"),
)
EVALUATION = ("--user-dir", USER_DIR, "--task", "language_modeling", "--cpu")


@pytest.fixture(scope="module")
def text_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Binarised text of 26 words: 200 / 20 / 20 lines."""
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(0)
    words = [f"w{number}" for number in range(26)]
    weights = [1 / (1 + number) for number in range(26)]
    for split, lines in (("train", 200), ("valid", 20), ("test", 20)):
        text = "".join(" ".join(draw.choices(words, weights, k=9)) + "\n" for _ in range(lines))
        (folder / split).write_text(text)
    run_fairseq(
        *("preprocess", "--only-source", "--trainpref", f"{folder}/train"),
        *("--validpref", f"{folder}/valid", "--testpref", f"{folder}/test"),
        *("--destdir", f"{folder}/bin", "--workers", "1"),
    )
    return folder / "bin"


def train(data: Path, save_dir: Path, updates: int, *args: str, check: bool = True) -> Any:
    options = ("--save-dir", str(save_dir), "--max-update", str(updates), "--max-tokens", "128")
    return run_fairseq("train", str(data), *TRAINING, *options, *args, check=check)


def state(save_dir: Path) -> dict[str, torch.Tensor]:
    model = torch.load(save_dir / "checkpoint_last.pt", weights_only=True)["model"]
    # fairseq's buffers of no meaning, whose memory it leaves as it finds it.
    return {name: value for name, value in model.items() if "_float_tensor" not in name}


@pytest.fixture(scope="module")
def trained(text_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(save directory, log) of 20 updates without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    result = train(text_bin, folder, 20, "--update-freq", "2")
    return folder, result.stdout + result.stderr


def test_entropy_is_in_the_log(trained: tuple[Path, str]) -> None:
    logged = re.findall(r"\btrain_inner\b[^{]*(\{.*\})$", trained[1], re.M)
    assert len(logged) == 20
    for line in map(json.loads, logged):
        # Of 16 words each query sees one more: log(16!)/16 nats if it sees all alike.
        assert 0 < float(line["entropy/decoder_self"]) <= 1.92
        assert float(line["gamma/mean"]) > 0
    assert (trained[0] / "monitor.npy").is_file()


def test_resumed_training_is_the_same_digit_for_digit(
    text_bin: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    for updates in (7, 20):
        train(text_bin, tmp_path, updates, "--update-freq", "2")
    whole, resumed = state(trained[0]), state(tmp_path)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_two_workers_equal_twice_the_accumulation(
    text_bin: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    train_on_two_workers(
        *(str(text_bin), *TRAINING, "--save-dir", str(tmp_path)),
        *("--max-update", "20", "--max-tokens", "128"),
    )
    models = up_to_signs(state(tmp_path)), up_to_signs(state(trained[0]))
    torch.testing.assert_close(*models, rtol=1e-3, atol=1e-4)


def test_interactive_samples_text(
    text_bin: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    (tmp_path / "prompts").write_text("w0 w1\nw2\n")
    result = run_fairseq(
        *("interactive", str(text_bin), *EVALUATION, "--seed", "3", "--sampling"),
        *("--path", str(trained[0] / "checkpoint_last.pt"), "--input", str(tmp_path / "prompts")),
        *("--sampling-topk", "5", "--beam", "2", "--nbest", "2", "--max-len-b", "8"),
    )
    sampled = re.findall(r"^H-(\d)\t\S+\t(.*)$", result.stdout, re.M)
    assert [number for number, _ in sampled] == ["0", "0", "1", "1"]
    prompts = ("w0 w1", "w2")
    assert all(text.startswith(prompts[int(number)]) for number, text in sampled)


def evaluate(data: Path, save_dir: Path, *args: str, check: bool = True) -> Any:
    checkpoint = ("--path", str(save_dir / "checkpoint_last.pt"), "--gen-subset", "test")
    return run_fairseq("eval_lm", str(data), *EVALUATION, *checkpoint, *args, check=check)


def test_a_context_window_as_large_as_the_block_is_refused(
    text_bin: Path, trained: tuple[Path, str]
) -> None:
    result = evaluate(
        *(text_bin, trained[0], "--tokens-per-sample", "16", "--context-window", "16"), check=False
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "ValueError: --context-window 16 leaves nothing to predict of a block of "
        "--tokens-per-sample 16"
    )


def test_another_dictionary_is_refused(
    text_bin: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    lines = (text_bin / "dict.txt").read_text().splitlines(keepends=True)
    words = len(lines) + 4
    for name, dictionary, message in (
        (
            "longer",
            [*lines, "another 1\n"],
            f"of a dictionary of {words} words, the data's has {words + 1}: take the data it was "
            "trained on",
        ),
        (
            "reordered",
            lines[::-1],
            "of a dictionary of as many other words as the data's, or of another order: take the "
            "data it was trained on",
        ),
    ):
        data = shutil.copytree(text_bin, tmp_path / name)
        (data / "dict.txt").write_text("".join(dictionary))
        result = evaluate(data, trained[0], "--tokens-per-sample", "16", check=False)
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1] == f"ValueError: the checkpoint is {message}"


def test_a_token_out_of_the_dictionary_is_refused(text_bin: Path, tmp_path: Path) -> None:
    data = shutil.copytree(text_bin, tmp_path / "bin")
    lines = (data / "dict.txt").read_text().splitlines(keepends=True)
    (data / "dict.txt").write_text("".join(lines[:16]))
    result = train(data, tmp_path / "save", 20, check=False)
    assert result.returncode == 1
    assert re.fullmatch(
        r"ValueError: token \d+ is not one of the 20 of the dictionary: the data were binarised "
        "with another one",
        result.stderr.splitlines()[-1],
    )


def test_an_empty_split_is_refused(text_bin: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    data = tmp_path / "bin"
    run_fairseq(
        *("preprocess", "--only-source", "--srcdict", str(text_bin / "dict.txt")),
        *("--trainpref", str(text_bin.parent / "train"), "--validpref", str(tmp_path / "empty")),
        *("--destdir", str(data), "--workers", "1"),
    )
    result = train(data, tmp_path / "save", 20, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"ValueError: {data / 'valid.bin'} is empty: the split has no text"
    )
