"""The monitored criterions through fairseq's own commands."""

import json
import math
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import criterions
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import USER_DIR, train_on_two_workers
from tests.speech.corpus import read_manifest, write_corpus

MONITORED = ("--criterion", "monitored_label_smoothed_cross_entropy", "--label-smoothing", "0.1")
PLAIN = ("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1")
Fairseq = Callable[..., "subprocess.CompletedProcess[str]"]


def options(data: Path, save_dir: Path, *more: str) -> list[str]:
    return [
        *(str(data), "--user-dir", USER_DIR, "--arch", "transformer_reparam_postln_6l"),
        *("--task", "translation", "--cpu", "--num-workers", "0", "--no-progress-bar"),
        *("--encoder-layers", "2", "--decoder-layers", "2", "--encoder-embed-dim", "16"),
        *("--encoder-ffn-embed-dim", "32", "--encoder-attention-heads", "2"),
        *("--decoder-attention-heads", "2", "--optimizer", "adam", "--lr", "0.01"),
        *("--max-tokens", "200", "--save-dir", str(save_dir), "--disable-validation"),
        *("--no-epoch-checkpoints", "--log-format", "json", "--log-interval", "1", *more),
    ]


def records(folder: Path) -> np.ndarray:
    return np.load(folder / "monitor.npy", mmap_mode="r")


def logged(text: str) -> list[dict[str, str]]:
    found = re.findall(r"\| train_inner \| (\{.*\})", text)
    return [json.loads(line) for line in found]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoint_last.pt", weights_only=False)
    state: dict[str, torch.Tensor] = checkpoint["model"]
    return state


def test_monitored_training_is_the_same_and_resumes(
    fairseq: Fairseq, data_bin: Path, tmp_path: Path
) -> None:
    fairseq("train", *options(data_bin, tmp_path / "plain", *PLAIN, "--max-update", "6"))
    watched = options(data_bin, tmp_path / "run", *MONITORED, "--monitor-interval", "2")
    shown = ("--tensorboard-logdir", str(tmp_path / "board"))
    first = fairseq("train", *watched, "--max-update", "3", *shown)
    fairseq("train", *watched, "--max-update", "6")

    before, after = weights(tmp_path / "plain"), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    found = records(tmp_path / "run")
    assert found["update"].tolist() == [0, 2, 4]
    assert np.isfinite(found["entropy"]).all()
    assert found["learning_rate"].tolist() == pytest.approx([0.01] * 3)
    lines = logged(first.stdout + first.stderr)
    assert float(lines[0]["loss"]) == pytest.approx(found["loss"][0], abs=2e-3)
    for name, kind in (
        ("entropy/encoder_self", "encoder self"),
        ("entropy/decoder_self", "decoder self"),
        ("entropy/encoder_decoder", "encoder-decoder"),
    ):
        header = json.loads((tmp_path / "run" / "monitor.json").read_text())
        rows = [index for index, a in enumerate(header["attentions"]) if a["kind"] == kind]
        mean = found["entropy"][0][rows].mean()
        assert float(lines[0][name]) == pytest.approx(mean, rel=1e-4)
        assert float(lines[1][name]) == pytest.approx(mean, rel=1e-4)  # shown until the next one
    assert header["architecture"] == "transformer_reparam_postln_6l"
    assert header["options"]["optimization"]["lr"] == [0.01]

    board = EventAccumulator(str(tmp_path / "board" / "train_inner"))
    tags = board.Reload().Tags()["scalars"]
    assert {"entropy/lowest_layer", "spectral_norm/largest", "gradient_norm/mean"} <= set(tags)


def test_two_workers_see_what_one_does_with_twice_the_micro_batches(
    fairseq: Fairseq, data_bin: Path, tmp_path: Path
) -> None:
    common = (*MONITORED, "--monitor-interval", "1", "--max-update", "3", "--dropout", "0")
    fairseq("train", *options(data_bin, tmp_path / "one", *common, "--update-freq", "2"))
    train_on_two_workers(*options(data_bin, tmp_path / "two", *common))
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert two["update"].tolist() == [0, 1, 2]
    for field in one.dtype.names:
        if field != "seconds":
            np.testing.assert_allclose(one[field], two[field], rtol=2e-3, atol=1e-4, err_msg=field)


def test_stop_saves_a_checkpoint_and_has_its_own_exit_status(
    fairseq: Fairseq, data_bin: Path, tmp_path: Path
) -> None:
    """A fresh model attends to all; a threshold just below that is soon passed."""
    watched = (*MONITORED, "--monitor-interval", "1", "--max-update", "50", "--lr", "0.1")
    stop = ("--on-collapse", "stop", "--collapse-threshold", "0.8")
    result = fairseq("train", *options(data_bin, tmp_path, *watched, *stop), check=False)
    text = result.stdout + result.stderr
    assert result.returncode == 3, text
    assert text.count("attention entropy has collapsed") == 1
    assert re.search(r"update \d+: attention entropy .* lowest in \w+\.layers\.\d", text)
    assert "stopped by --on-collapse stop, with" in text
    update = records(tmp_path)["update"][-1]
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=False)
    assert state["optimizer_history"][-1]["num_updates"] == update + 1 < 50
    # The same command goes on from there, and has nothing left to say at a lower threshold.
    more = (*watched[:-4], "--lr", "0.001", "--max-update", str(update + 2))
    again = fairseq("train", *options(data_bin, tmp_path, *more))
    assert "collapsed" not in again.stdout + again.stderr


def test_stop_without_checkpoints_ends_at_once(
    fairseq: Fairseq, data_bin: Path, tmp_path: Path
) -> None:
    watched = (*MONITORED, "--monitor-interval", "1", "--max-update", "50", "--lr", "0.1")
    stop = ("--on-collapse", "stop", "--collapse-threshold", "0.8", "--no-save")
    result = fairseq("train", *options(data_bin, tmp_path, *watched, *stop), check=False)
    assert result.returncode == 3
    assert {path.name for path in tmp_path.iterdir()} == {"monitor.json", "monitor.npy"}


def test_gradients_that_are_not_finite_are_reported(
    fairseq: Fairseq, data_bin: Path, tmp_path: Path
) -> None:
    watched = (*MONITORED, "--monitor-interval", "1", "--max-update", "50", "--lr", "1e30")
    more = ("--no-save", "--on-collapse", "stop", "--optimizer", "sgd")
    result = fairseq("train", *options(data_bin, tmp_path, *watched, *more), check=False)
    text = result.stdout + result.stderr
    assert result.returncode == 3, text
    told = re.findall(r"update \d+: (the loss and )?gradients are not finite, first that of", text)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"monitor_interval": 0}, "--monitor-interval 0 is not a number from 1 on"),
        ({"collapse_threshold": 1.0}, "--collapse-threshold 1.0 is not a share"),
        ({"collapse_threshold": -0.1}, "--collapse-threshold -0.1 is not a share"),
    ],
)
def test_options_that_make_no_sense(option: dict[str, Any], message: str, task: Any) -> None:
    name = "monitored_label_smoothed_cross_entropy"
    root = OmegaConf.create(
        {
            "criterion": {"_name": name, **option},
            "optimization": {"sentence_avg": False},
            "checkpoint": {"save_dir": "unused", "no_save": True},
        }
    )
    with pytest.raises(ValueError, match=message):
        criterions.build_criterion(root.criterion, task)


def test_validation_is_fairseqs(fairseq: Fairseq, data_bin: Path, tmp_path: Path) -> None:
    fairseq("train", *options(data_bin, tmp_path, *MONITORED, "--max-update", "1"))
    (tmp_path / "monitor.npy").unlink()
    common = (str(data_bin), "--user-dir", USER_DIR, "--task", "translation", "--cpu")
    path = ("--path", str(tmp_path / "checkpoint_last.pt"), "--max-tokens", "500")
    result = fairseq("validate", *common, *path)
    assert "| valid on 'valid' subset | loss" in result.stdout + result.stderr
    assert not (tmp_path / "monitor.npy").exists()


def test_fairseqs_language_model_with_adaptive_softmax(fairseq: Fairseq, tmp_path: Path) -> None:
    draw = random.Random(0)
    text = "".join(" ".join(draw.choices("abcdefghijkl", k=20)) + "\n" for _ in range(40))
    (tmp_path / "train.txt").write_text(text)
    prefix = ("--only-source", "--trainpref", str(tmp_path / "train.txt"))
    fairseq("preprocess", *prefix, "--destdir", str(tmp_path / "bin"))
    run = tmp_path / "run"
    result = fairseq(
        "train",
        *(str(tmp_path / "bin"), "--user-dir", USER_DIR, "--task", "language_modeling", "--cpu"),
        *("--arch", "transformer_lm", "--decoder-layers", "2", "--decoder-embed-dim", "16"),
        *("--decoder-ffn-embed-dim", "32", "--decoder-attention-heads", "2", "--dropout", "0"),
        *("--criterion", "monitored_adaptive_loss", "--adaptive-softmax-cutoff", "6,10"),
        *("--optimizer", "nag", "--lr", "0.1", "--tokens-per-sample", "16", "--batch-size", "4"),
        *("--max-update", "2", "--monitor-interval", "1", "--save-dir", str(run)),
        *("--disable-validation", "--no-epoch-checkpoints", "--num-workers", "0"),
        *("--ddp-backend", "legacy_ddp", "--decoder-input-dim", "16"),
        *("--decoder-output-dim", "16", "--log-format", "json", "--log-interval", "1"),
    )
    found, header = records(run), json.loads((run / "monitor.json").read_text())
    assert [a["kind"] for a in header["attentions"]] == ["decoder self"] * 2
    # Blocks of 16 tokens without padding: the i-th sees i of them.
    uniform = sum(math.log(seen) for seen in range(1, 17)) / 16
    assert found["entropy_max"][0] == pytest.approx(uniform, rel=1e-5)
    assert 0.9 * uniform < found["entropy"][0].min() <= found["entropy"][0].max() <= uniform
    first = logged(result.stdout + result.stderr)[0]
    assert found["loss"][0] == pytest.approx(float(first["loss"]), abs=2e-3)


def test_speech_with_dropped_layers_is_watched_validated_by_words_and_resumed(
    fairseq: Fairseq, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "data", {"train": 6, "valid": 2})
    run = tmp_path / "run"
    speech = [
        *(str(tmp_path / "data"), "--user-dir", USER_DIR, "--task", "ctc_speech", "--cpu"),
        *("--arch", "ctc_transformer_reparam_postln_36l", "--encoder-layers", "2"),
        *("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32"),
        *("--encoder-attention-heads", "2", "--encoder-layerdrop", "0.5", "--seed", "1"),
        *("--criterion", "monitored_ctc", "--zero-infinity", "--monitor-interval", "1"),
        *("--optimizer", "adagrad", "--lr", "0.01", "--batch-size", "2", "--num-workers", "0"),
        *("--best-checkpoint-metric", "wer", "--save-dir", str(run), "--no-epoch-checkpoints"),
        *("--log-format", "json", "--log-interval", "1"),
    ]
    result = fairseq("train", *speech, "--max-update", "3")
    text = result.stdout + result.stderr
    found = records(run)
    assert found["update"].tolist() == [0, 1, 2]
    # The entropy of attending evenly to all frames of an utterance, a third of those read.
    frames = [-(-int(row[2]) // 3) for row in read_manifest(tmp_path / "data" / "train.tsv")]
    evenly = found["entropy_max"][np.isfinite(found["entropy_max"])]
    assert math.log(min(frames)) <= evenly.min() <= evenly.max() <= math.log(max(frames))
    (valid,) = re.findall(r"\| valid \| (\{.*\})", text)
    assert float(json.loads(valid)["valid_wer"]) > 0
    assert "decoder" not in (run / "monitor.json").read_text().partition('"options"')[0]
    assert (run / "checkpoint_best.pt").is_file()

    again = fairseq("train", *speech, "--max-update", "5")
    found = records(run)
    assert found["update"].tolist() == [0, 1, 2, 3, 4]
    for number, line in enumerate(logged(text) + logged(again.stdout + again.stderr)):
        dropped = np.random.default_rng((1, number)).random(2) < 0.5
        entropy = found["entropy"][number]
        assert np.isnan(entropy).all(axis=1).tolist() == dropped.tolist()
        assert np.isnan(entropy).any(axis=1).tolist() == dropped.tolist()
        if not dropped.all():
            mean = float(line["entropy/encoder_self"])
            assert mean == pytest.approx(entropy[~dropped].mean(), rel=1e-4)
    options = json.loads((run / "monitor.json").read_text())["options"]
    assert options["task"]["_name"] == "ctc_speech"
    assert options["task"]["decoder"] == "greedy"
    assert "encoder_layers" not in options["task"]
