"""The task through fairseq's own commands, its WER against jiwer's, and batches without weight."""

import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, options
from fairseq.criterions.ctc import CtcCriterion, CtcCriterionConfig
from fairseq.data.data_utils import batch_by_size
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics

from sigma_fairseq.tasks.ctc_speech import CtcSpeechConfig, CtcSpeechTask
from tests.conftest import USER_DIR, train_on_two_workers, up_to_signs
from tests.speech.corpus import damage, read_manifest, write_corpus, write_manifest

TRAINING = (
    *("--task", "ctc_speech", "--user-dir", USER_DIR, "--cpu", "--criterion", "ctc"),
    *("--train-subset", "train-a,train-b", "--valid-subset", "dev", "--no-epoch-checkpoints"),
    *("--arch", "ctc_transformer_reparam_postln_36l", "--encoder-layers", "1"),
    *("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32", "--zero-infinity"),
    *("--optimizer", "adagrad", "--lr", "0.1", "--clip-norm", "1", "--batch-size", "1"),
    *("--max-tokens", "200", "--update-freq", "2", "--best-checkpoint-metric", "wer"),
    *("--no-progress-bar", "--log-format", "json", "--log-interval", "1"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of which every split lacks an utterance and has one that cannot be read."""
    path = tmp_path_factory.mktemp("corpus") / "data"
    write_corpus(path, {"train-a": 5, "train-b": 3, "dev": 4, "test": 4})
    for split in ("train-a", "dev", "test"):
        rows = read_manifest(path / f"{split}.tsv")
        rows[1] = (*rows[1][:2], "201", *rows[1][3:])
        write_manifest(path / f"{split}.tsv", rows)
    # Batches of one utterance: the first of each split, by length, is empty.
    for name in ("train-a-4", "dev-0", "test-0"):
        damage(path, name)
    return path


def task_of(folder: Path, **options: Any) -> CtcSpeechTask:
    elsewhere = {"seed": 1, "num_workers": 0, "max_tokens": None, "max_tokens_valid": None}
    cfg = {"data": str(folder), "train_subset": "train", **elsewhere, **options}
    return CtcSpeechTask.setup_task(CtcSpeechConfig(**cfg))


def with_a_namespace(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """A checkpoint as it was when the task had no dataclass: with the command line in its place."""
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, [str(folder), *TRAINING])
    state["cfg"]["task"] = Namespace(**vars(args), _name="ctc_speech")
    return state


def test_training_is_the_same_resumed_with_other_workers(
    fairseq: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    def train(save_dir: str, *args: str) -> Any:
        where = ("--save-dir", str(tmp_path / save_dir), "--max-update", "9")
        return fairseq("train", str(folder), *TRAINING, *where, *args)

    # An epoch has four updates.
    whole = train("whole", "--num-workers", "0", "--save-interval-updates", "6")
    middle = tmp_path / "earlier.pt"
    torch.save(with_a_namespace(tmp_path / "whole/checkpoint_2_6.pt", folder), middle)
    train("resumed", "--num-workers", "2", "--restore-file", str(middle))
    states = [
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True)["model"]
        for name in ("whole", "resumed")
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    log = whole.stdout + whole.stderr
    assert log.count("train-a: left out 1 of 5: too long 1 (train-a-1)") == 1
    assert log.count("dev: left out 1 of 4: too long 1 (dev-1)") == 1
    assert log.count("train-a: cannot use train-a-4: corrupt") == 1
    assert log.count("dev: cannot use dev-0: corrupt") == 1
    valid = json.loads(re.findall(r"\| dev \| (\{.*\})$", log, re.M)[0])
    # Validation is of the two that are left, and each weighs as much as it has labels.
    assert float(valid["dev_loss"]) > 0 and float(valid["dev_nsentences"]) == 1
    generated = fairseq(
        *("generate", str(folder), "--task", "ctc_speech", "--user-dir", USER_DIR, "--cpu"),
        *("--path", str(tmp_path / "whole/checkpoint_last.pt"), "--gen-subset", "test"),
        *("--scoring", "wer", "--max-tokens", "200", "--max-source-positions", "200"),
    )
    texts = {row[0]: row[3] for row in read_manifest(folder / "test.tsv")}
    references = dict(re.findall(r"^T-(\d+)\t(.*)$", generated.stdout, re.M))
    assert references == {number: texts[f"test-{number}"] for number in "23"}
    assert len(re.findall(r"^D-[23]\t", generated.stdout, re.M)) == 2
    log = generated.stdout + generated.stderr
    assert "test: left out 1 of 4: too long 1 (test-1)" in log
    assert "test: cannot use test-0: corrupt" in log

    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([str(middle)])
    assert isinstance(cfg.task, Namespace) and isinstance(task, CtcSpeechTask)
    assert task.args.train_subset == "train-a,train-b" and task.args.max_tokens == 200
    saved = torch.load(middle, weights_only=True)["model"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[name]), name


def test_two_workers_are_one_with_twice_the_accumulation(
    fairseq: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    # CAPE's shift is drawn by each worker for itself. One batch of four cannot be used.
    plain = ("--cape-global-shift", "0", "--encoder-layerdrop", "0", "--num-workers", "0")
    drops = ("--dropout-input", "--attention-dropout", "--activation-dropout")
    plain += tuple(word for drop in drops for word in (drop, "0"))
    common = (str(folder), *TRAINING, *plain, "--max-update", "4", "--save-dir")
    fairseq("train", *common, str(tmp_path / "one"), "--update-freq", "2")
    train_on_two_workers(*common, str(tmp_path / "two"), "--update-freq", "1")
    one, two = (
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True)
        for name in ("one", "two")
    )
    models = up_to_signs(one["model"]), up_to_signs(two["model"])
    torch.testing.assert_close(*models, rtol=1e-4, atol=1e-6)
    wers = [state["extra_state"]["best"] for state in (one, two)]
    assert wers[0] == wers[1]


def test_plateau_schedule_goes_by_the_wer(
    fairseq: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    # Steps that lower the loss and change no word: with a patience of none, epoch 3 has half.
    schedule = ("--lr-scheduler", "reduce_lr_on_plateau", "--lr-shrink", "0.5", "--lr", "0.01")
    lars = ("--optimizer", "lars", "--max-epoch", "3", "--num-workers", "0", "--no-save")
    log = fairseq("train", str(folder), *TRAINING, *schedule, *lars).stdout

    def logged(subset: str, name: str) -> list[float]:
        entries = re.findall(rf"\| {subset} \| (\{{.*\}})$", log, re.M)
        return [float(json.loads(entry)[f"{subset}_{name}"]) for entry in entries]

    assert len(set(logged("dev", "wer"))) == 1
    losses = logged("dev", "loss")
    assert losses[0] > 1.001 * losses[1] > 1.001 * losses[2]
    assert logged("train", "lr") == [0.01, 0.01, 0.005]


def test_a_split_that_has_become_unreadable_does_not_end_training(
    fairseq: Callable[..., Any], tmp_path: Path
) -> None:
    write_corpus(tmp_path / "data", {"train-a": 2, "train-b": 2, "dev": 2})
    for name in ("dev-0", "dev-1"):
        damage(tmp_path / "data", name)
    where = ("--save-dir", str(tmp_path / "run"), "--max-epoch", "2", "--num-workers", "0")
    result = fairseq("train", str(tmp_path / "data"), *TRAINING, *where)
    assert result.stdout.count('"dev_wer": "inf"') == 2
    assert (tmp_path / "run/checkpoint_last.pt").is_file()


def test_strict_is_one_line_and_status_1(
    fairseq: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    where = ("--save-dir", str(tmp_path), "--num-workers", "2")
    result = fairseq("train", str(folder), *TRAINING, *where, "--strict", check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last == "error: dev: cannot use 2 of 4: too long 1 (dev-1), corrupt 1 (dev-0)"


def test_wer_of_validation_is_jiwers(folder: Path) -> None:
    """Frames that spell a hypothesis, with blanks and repetitions, as fairseq's criterion reads."""
    task = task_of(folder)
    texts = [("it's a cat", "its a cat"), ("see", "see see"), ("a bee sat", "bee"), ("me", "me")]
    labels = [torch.tensor(task.tgt_dict.labels(reference)) for reference, _ in texts]
    paths = []
    for _, hypothesis in texts:
        path = [0]
        for label in task.tgt_dict.labels(hypothesis):
            path += [label, label, 0]
        paths.append(torch.tensor(path))
    frames = torch.tensor([len(path) for path in paths])
    paths = torch.nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=5)
    logits = 20.0 * torch.nn.functional.one_hot(paths, 29).transpose(0, 1)
    padding = torch.arange(paths.size(1)) >= frames[:, None]

    class Model(torch.nn.Module):
        def forward(self) -> dict[str, torch.Tensor]:
            return {"encoder_out": logits, "padding_mask": padding}

        def get_normalized_probs(self, output: Any, log_probs: bool) -> torch.Tensor:
            return output["encoder_out"].log_softmax(-1)

    criterion = CtcCriterion(CtcCriterionConfig(zero_infinity=True, sentence_avg=False), task)
    sample = {
        "id": torch.arange(4),
        "net_input": {},
        "target": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True),
        "target_lengths": torch.tensor([len(label) for label in labels]),
        "nsentences": 4,
    }
    _, _, log = task.valid_step(sample, Model(), criterion)
    references, hypotheses = (list(side) for side in zip(*texts, strict=True))
    words, characters = (
        measure(references, hypotheses)
        for measure in (jiwer.process_words, jiwer.process_characters)
    )
    errors = [
        found.substitutions + found.deletions + found.insertions for found in (words, characters)
    ]
    assert [log["w_errors"], log["c_errors"]] == errors
    assert log["w_errors"] / log["w_total"] == pytest.approx(jiwer.wer(references, hypotheses))


def test_batch_without_an_utterance_has_no_weight(
    folder: Path, build_speech: Callable[..., Any]
) -> None:
    task = task_of(folder)
    task.load_dataset("dev")
    dataset = task.dataset("dev")
    empty = dataset.collater([dataset[0]])
    assert empty["nsentences"] == 0
    model = build_speech("ctc_transformer_reparam_postln_36l", encoder_layers=1)
    criterion = CtcCriterion(CtcCriterionConfig(sentence_avg=True), task)
    optimizer = SimpleNamespace(backward=lambda loss: loss.backward())
    loss, sample_size, log = task.train_step(empty, model, criterion, optimizer, update_num=0)
    assert loss == 0 and sample_size == 0 and not any(log.values())
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    _, _, log = task.valid_step(empty, model, criterion)
    assert {"w_total", "w_errors", "c_errors", "loss"} <= log.keys() and not any(log.values())
    with metrics.aggregate() as meters:
        task.reduce_metrics([log], criterion)
    assert meters["loss"].count == 0


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", None, r"config\.yaml not found"),
        ("config.yaml", "a: [", r"config\.yaml"),
        ("config.yaml", "some words", "not a mapping"),
        ("config.yaml", "input_feat_per_channel: 40", "input_feat_per_channel must be 80"),
        ("config.yaml", "sample_rate: 8000", "sample_rate 16000"),
        ("dict.txt", None, r"dict\.txt"),
        ("dict.txt", "a 1\n", "word boundary"),
    ],
)
def test_bad_data_folder_is_one_line(
    folder: Path, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    for name in ("config.yaml", "dict.txt"):
        (tmp_path / name).write_text((folder / name).read_text())
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(SystemExit, match=message) as raised:
        task_of(tmp_path)
    assert str(raised.value).startswith("error: ") and "\n" not in str(raised.value)


def test_bad_splits_are_one_line(folder: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: --train-subset train-a,dev: .* train\*"):
        task_of(folder, train_subset="train-a,dev")
    with pytest.raises(SystemExit, match=r"error: .*none\.tsv"):
        task_of(folder).load_dataset("none")


def test_no_utterance_is_lost_to_the_size_of_batches(folder: Path) -> None:
    parser = options.get_generation_parser()
    args = options.parse_args_and_arch(parser, [str(folder), "--task", "ctc_speech"])
    cfg = convert_namespace_to_omegaconf(args)
    multiple = cfg.dataset.required_batch_size_multiple
    for size in range(1, 40):
        utterances = np.arange(size)
        batches = batch_by_size(
            utterances, lambda _: 9, max_tokens=200, required_batch_size_multiple=multiple
        )
        assert np.concatenate(batches).tolist() == utterances.tolist()


def test_words_and_letters(folder: Path) -> None:
    words = task_of(folder).build_bpe(None)
    assert words.encode("it's  a") == "i t ' s | a"
    assert words.decode(words.encode("it's a cat")) == "it's a cat"
