"""The WikiText-103 recipe's scripts, run as a user runs them, on a made-up text."""

import gzip
import hashlib
import json
import math
import os
import random
import shlex
import shutil
import subprocess
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock
from zipfile import ZipFile

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.optim import FairseqOptimizer
from fairseq.optim.lr_scheduler.cosine_lr_scheduler import CosineLRSchedule

from sigma_fairseq.sweep.commands import fairseq_arguments
from sigma_fairseq.sweep.settings import load_sweep
from tests.recipes.scripts import ROOT, copy_project, options_of, run_script, smoke, train_log

RECIPE = ROOT / "recipes" / "wikitext103"
ARCH = "transformer_lm_reparam_noln_wiki103_16l"
ARCHS = [
    f"transformer_lm_{kind}_wiki103_{depth}l"
    for kind in ("postln", "preln", "reparam_noln")
    for depth in (16, 32)
]
BLOCK, WINDOW = 512, 256
NAMES = [f"wiki.{split}.tokens" for split in ("test", "train", "valid")]
LINES = {"train": 60, "valid": 12, "test": 7}


def run(
    script: str, *arguments: object, cwd: Path, recipe: Path = RECIPE, **env: object
) -> subprocess.CompletedProcess:
    """Runs a script of the recipe; see `run_script`."""
    return run_script(recipe / script, *arguments, cwd=cwd, **env)


def text_of(split: str) -> str:
    """Lines of one to ten words, of which each mostly says which is next, and blank lines."""
    draw = random.Random(split)
    lines = []
    for _ in range(LINES[split]):
        word = draw.randrange(30)
        words = [word := (word + draw.choice((1, 1, 1, 7))) % 30 for _ in range(draw.randint(0, 9))]
        lines.append(" " + " ".join(f"wörd{word}" for word in words) + " \n")
    return "".join([*lines, " = <unk> of the text = \n"])


def write_corpus(raw: Path) -> None:
    raw.mkdir(parents=True)
    for split in LINES:
        (raw / f"wiki.{split}.tokens").write_text(text_of(split), encoding="utf-8")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "raw data")
    return tmp_path / "raw data"


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A data folder for scripts that only look what is there."""
    data = tmp_path / "data"
    (data / "bin").mkdir(parents=True)
    (data / "prepared.txt").touch()
    for name in ("dict.txt", "valid.bin", "test.bin"):
        (data / "bin" / name).write_text("a 1\n")
    return data


def loss_of(checkpoint: Path, data: Path, text: str, window: int) -> tuple[float, int]:
    """Bits a token by the definition, and the tokens: piece after piece, in double precision."""
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], arg_overrides={"data": str(data)}
    )
    model.double().eval()
    words = task.source_dictionary
    tokens = [
        token
        for line in text.splitlines()
        for token in [*map(words.index, line.split()), words.eos()]
    ]
    inputs = torch.tensor([words.eos(), *tokens[:-1]])
    bits = 0.0
    for start in range(0, len(tokens), BLOCK - WINDOW):
        targets = torch.tensor(tokens[start : start + BLOCK - WINDOW])
        seen = inputs[max(0, start - window) : start + len(targets)]
        with torch.no_grad():
            features, _ = model(seen[None])
            log_probs = model.decoder.adaptive_softmax.get_log_prob(features, None)[0]
        assert log_probs.dtype == torch.float64
        predicted = log_probs[-len(targets) :].gather(1, targets[:, None])
        bits -= predicted.sum().item() / math.log(2)
    return bits / len(tokens), len(tokens)


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    """From made-up text to perplexity, held against the definition, in paths with spaces."""
    project = copy_project(tmp_path / "pro ject")
    data = project / "data" / "smoke" / "wikitext103"
    save = project / "runs" / "smoke" / "wikitext103" / ARCH / "lr2-wd1e-4" / "seed3"
    # What a killed run leaves behind.
    (data.with_name(f"{data.name}.part") / "bin").mkdir(parents=True)
    prepared = smoke(project, "wikitext103/prepare.sh")
    raw = data.with_name(f"{data.name}.raw")
    assert sorted(data.parent.iterdir()) == [data, raw]
    assert sorted(path.name for path in raw.iterdir()) == NAMES
    text = {split: (raw / f"wiki.{split}.tokens").read_text() for split in LINES}
    # fairseq's four symbols, one of which the text has, and up to a multiple of 8.
    words = -(-(len(set(text["train"].split())) + 3) // 8) * 8
    assert f"a dictionary of {words} words" in prepared
    assert sorted(path.name for path in data.iterdir()) == ["bin", "prepared.txt"]
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    again = smoke(project, "wikitext103/prepare.sh")
    assert f"there already: a dictionary of {words} words" in again
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before

    trained = smoke(project, "wikitext103/train.sh", ARCH, 3, 2, "1e-4")
    assert f"training {ARCH}, learning rate 2, weight decay 1e-4, seed 3" in trained
    assert {path.name for path in save.glob("checkpoint_[bl]*.pt")} == {
        *("checkpoint_best.pt", "checkpoint_last.pt")
    }
    _, valid = train_log(save)
    assert [point["valid_num_updates"] for point in valid] == ["5", "10"]

    evaluated = smoke(project, "wikitext103/evaluate.sh", save, SPLITS="test")
    scores = json.loads((save / "evaluation" / "scores.json").read_text())
    best = min(valid, key=lambda point: float(point["valid_ppl"]))
    loss, tokens = loss_of(save / "checkpoint_best.pt", data / "bin", text["test"], WINDOW)
    assert scores == {
        "test": {
            "perplexity": pytest.approx(2**loss, abs=6e-3),
            "loss": pytest.approx(loss, abs=1e-4),
            "tokens": tokens,
            "tokens_per_sample": BLOCK,
            "context_window": WINDOW,
            "updates": int(best["valid_num_updates"]),
        }
    }
    assert f"test: perplexity {scores['test']['perplexity']:.2f}, {tokens:,}" in evaluated
    # Without the context it would be another figure.
    alone, _ = loss_of(save / "checkpoint_best.pt", data / "bin", text["test"], 0)
    assert abs(alone - loss) > 1e-3
    assert "Perplexity" in (save / "evaluation" / "test.log").read_text()

    # An evaluation that fails leaves the one before, and says what fairseq said last.
    command = tmp_path / "commands" / "fairseq-eval-lm"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho a figure\necho error: no memory >&2\nexit 1\n")
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    script = project / "recipes" / "wikitext103" / "evaluate.sh"
    failed = run_script(script, save, cwd=tmp_path, SMOKE=1, SPLITS="test", PATH=path)
    assert failed.returncode == 1
    assert failed.stderr == "wikitext103: error: test: error: no memory\n"
    assert not (save / "evaluation.part").exists()
    assert json.loads((save / "evaluation" / "scores.json").read_text()) == scores


def only_blank(text: bytes) -> bytes:
    return b" \n" * text.count(b"\n")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (None, "raw data: no wiki.valid.tokens and no valid.txt, nor one of these with .gz"),
        (lambda text: b"", "wiki.valid.tokens: line 1: the file is empty"),
        (only_blank, "wiki.valid.tokens: no words"),
        (lambda text: text + b"V\xf6gel\n", "wiki.valid.tokens: line 14: not UTF-8 (byte 0xf6"),
    ],
)
def test_prepare_refuses(
    raw: Path, tmp_path: Path, edit: Callable[[bytes], bytes] | None, message: str
) -> None:
    """A fault of the text: one line that names the file, and nothing left behind."""
    file = raw / "wiki.valid.tokens"
    if edit is None:
        file.unlink()
    else:
        file.write_bytes(edit(file.read_bytes()))
    result = run("prepare.sh", raw, tmp_path / "out", cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [raw.name]


def test_prepare_refuses_a_damaged_archive(raw: Path, tmp_path: Path) -> None:
    (raw / "wiki.test.tokens").unlink()
    (raw / "test.txt.gz").write_bytes(gzip.compress(text_of("test").encode())[:-20])
    result = run("prepare.sh", raw, tmp_path / "out", cwd=tmp_path)
    assert result.returncode == 1
    assert "test.txt.gz: line" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [raw.name]


def test_prepare_keeps_a_folder_that_it_did_not_make(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    result = run("prepare.sh", raw, tmp_path / "out", cwd=tmp_path)
    assert result.returncode == 1
    assert "did not make it" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    result = run("prepare.sh", tmp_path / "none", tmp_path / "new", cwd=tmp_path)
    assert result.stderr == f"wikitext103: error: {tmp_path}/none: no such folder\n"


# What prepare.sh downloads: an archive of the test's own, from a folder, in a copy of the recipe
# that has its checksum. Its validation set has no words, so that the script stops after unpacking.

ARCHIVE = "wikitext-103-v1.zip"


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    with ZipFile(folder / ARCHIVE, "w") as archive:
        for split in LINES:
            text = " \n" if split == "valid" else text_of(split)
            archive.writestr(f"wikitext-103/wiki.{split}.tokens", text)
        archive.writestr("../../../outside", "")
        archive.writestr(f"{tmp_path}/outside", "")
    return folder


@pytest.fixture
def recipe(tmp_path: Path, mirror: Path) -> Path:
    copy = tmp_path / "project" / "recipes" / "wikitext103"
    shutil.copytree(RECIPE, copy)
    (tmp_path / "project" / "scripts").symlink_to(ROOT / "scripts")
    digest = hashlib.sha256((mirror / ARCHIVE).read_bytes()).hexdigest()
    (copy / "sha256.txt").write_text(f"{digest}  {ARCHIVE}\n")
    return copy


def fetch(recipe: Path, tmp_path: Path) -> subprocess.CompletedProcess:
    env = {"DOWNLOAD": 1, "MIRROR": f"file://{tmp_path}/mirror"}
    return run("prepare.sh", tmp_path / "raw data", "out", cwd=tmp_path, recipe=recipe, **env)


def test_a_download_is_checked_and_unpacked(recipe: Path, tmp_path: Path) -> None:
    result = fetch(recipe, tmp_path)
    assert "wikitext-103/wiki.valid.tokens: no words" in result.stderr
    assert [path.name for path in (tmp_path / "raw data").iterdir()] == ["wikitext-103"]
    unpacked = tmp_path / "raw data" / "wikitext-103"
    assert sorted(path.name for path in unpacked.iterdir()) == NAMES
    assert (unpacked / "wiki.train.tokens").read_text(encoding="utf-8") == text_of("train")
    assert not list(tmp_path.rglob("outside"))
    assert "fetching" not in fetch(recipe, tmp_path).stdout


def test_an_interrupted_download_goes_on(recipe: Path, mirror: Path, tmp_path: Path) -> None:
    whole = (mirror / ARCHIVE).read_bytes()
    raw = tmp_path / "raw data"
    raw.mkdir()
    # If the first half were fetched again, this one, which is wrong, would not matter.
    (raw / ARCHIVE).write_bytes(bytes(len(whole) // 2))
    result = fetch(recipe, tmp_path)
    assert result.returncode == 1
    assert "its SHA256 is wrong" in result.stderr
    assert list(raw.iterdir()) == []
    (raw / ARCHIVE).write_bytes(whole[: len(whole) // 2])
    assert "unpacking" in fetch(recipe, tmp_path).stdout
    assert [path.name for path in raw.iterdir()] == ["wikitext-103"]


def test_an_interrupted_unpacking_starts_again(recipe: Path, mirror: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw data"
    (raw / f"{ARCHIVE}.part" / "wikitext-103" / "half").mkdir(parents=True)
    (mirror / ARCHIVE).rename(raw / ARCHIVE)
    result = fetch(recipe, tmp_path)
    assert "fetching" not in result.stdout
    assert sorted(path.name for path in (raw / "wikitext-103").iterdir()) == NAMES
    assert [path.name for path in raw.iterdir()] == ["wikitext-103"]


def test_what_cannot_be_fetched(recipe: Path, mirror: Path, tmp_path: Path) -> None:
    (mirror / ARCHIVE).unlink()
    result = fetch(recipe, tmp_path)
    assert result.returncode == 1
    assert f"{ARCHIVE}: not fetched; run again to go on" in result.stderr


def dry_run(data: Path, *arguments: object, **env: object) -> dict[str, list[str]]:
    env = {"NGPUS": 8, **env}
    shown = run("train.sh", *arguments, cwd=data, DATA_DIR=data, DRY_RUN=1, **env)
    assert shown.returncode == 0, shown.stderr
    assert shlex.split(shown.stdout)[:2] == ["fairseq-train", f"{data}/bin"]
    return options_of(shown.stdout)


def test_train_is_appendix_g(prepared: Path) -> None:
    """The settings of the paper, and of the recipe that it starts from, for every architecture."""
    for arch in ARCHS:
        options = dry_run(prepared, arch, 5, 2.5, "1e-3")
        assert options["--arch"] == [arch]
        assert options["--seed"] == ["5"]
        assert options["--task"] == ["language_modeling"]
        assert options["--optimizer"] == ["nag"]
        assert "--momentum" not in options
        assert options["--lr"] == ["2.5"]
        assert options["--weight-decay"] == ["1e-3"]
        assert options["--clip-norm"] == ["0.1"]
        assert options["--tokens-per-sample"] == ["512"]
        assert options["--sample-break-mode"] == ["none"]
        assert options["--max-update"] == ["286000"]
        assert not {"--fp16", "--amp", "--bf16"} & set(options)
        assert options["--save-dir"] == [f"{ROOT}/runs/wikitext103/{arch}/lr2.5-wd1e-3/seed5"]


def test_schedule_is_one_half_wave(prepared: Path) -> None:
    options = dry_run(prepared, ARCH, 1, 2, 0)
    assert options["--lr-scheduler"] == ["cosine"]
    names = ("warmup_updates", "max_update", "lr_period_updates", "t_mult", "lr_shrink")
    rates = ("warmup_init_lr", "min_lr")
    settings = {name: float(options["--" + name.replace("_", "-")][0]) for name in (*names, *rates)}
    scheduler = CosineLRSchedule(Namespace(lr=[2.0], **settings), Mock(spec=FairseqOptimizer))
    updates = (0, 8000, 16_000, 151_000, 285_999)
    found = [scheduler.step_update(update) for update in updates]
    assert found == pytest.approx([1e-7, 1, 2, 1, 1e-4], rel=1e-3)


def test_fewer_and_smaller_gpus_keep_the_batch(prepared: Path) -> None:
    for gpus, tokens, accumulated in ((8, 9216, 1), (1, 9216, 8), (2, 4608, 8), (8, 3072, 3)):
        options = dry_run(prepared, ARCH, 1, 1, 0, NGPUS=gpus, MAX_TOKENS=tokens)
        assert options["--distributed-world-size"] == [str(gpus)]
        assert options["--max-tokens"] == [str(tokens)]
        assert options["--update-freq"] == [str(accumulated)]
        assert gpus * tokens * accumulated == 73_728
    options = dry_run(prepared, ARCH, 1, 1, 0, "--lr", "7", CPU=1)
    assert options["--lr"] == ["7"]
    assert options["--update-freq"] == ["8"]
    assert "--cpu" in options


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["transformer_lm_wiki103", 1, 1, 0], {}, "no such architecture of a language model"),
        (["transformer_lm_preln_wiki103_18l", 1, 1, 0], {}, "no such architecture"),
        ([ARCH, "one", 1, 0], {}, "whole number, not 'one'"),
        ([ARCH, 1, "hot", 0], {}, "learning rate must be a number, not 'hot'"),
        ([ARCH, 1, 1, "1e"], {}, "weight decay must be a number, not '1e'"),
        ([ARCH, 1, 1, 0], {"NGPUS": 5}, "5 GPUs of 9216 tokens do not divide a batch of 73728"),
        ([ARCH, 1, 1, 0], {"NGPUS": 16}, "16 GPUs of 9216 tokens do not divide"),
        ([ARCH, 1, 1, 0], {"MAX_TOKENS": 9000}, "a multiple of 512, not 9000"),
        ([ARCH, 1, 1, 0], {"MAX_TOKENS": 0}, "whole numbers from 1 on"),
        ([ARCH, 1, 1, 0], {"NGPUS": "all"}, "whole numbers from 1 on"),
        ([ARCH, 1, 1, 0], {"DATA_DIR": "none"}, "run prepare.sh first"),
    ],
)
def test_train_refuses(
    arguments: list[object], env: dict[str, object], message: str, prepared: Path, tmp_path: Path
) -> None:
    settings = {"DATA_DIR": prepared, "SAVE_DIR": tmp_path / "run", "NGPUS": 8, **env}
    result = run("train.sh", *arguments, cwd=tmp_path, **settings)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_another_dictionary_is_refused(prepared: Path, tmp_path: Path) -> None:
    save = tmp_path / "run"
    save.mkdir()
    (save / "checkpoint_best.pt").touch()
    (save / "dict.txt").write_text("b 1\n")
    env = {"DATA_DIR": prepared, "SAVE_DIR": save, "CPU": 1}
    for script, *arguments in (("train.sh", ARCH, 1, 1, 0), ("evaluate.sh", save)):
        result = run(script, *arguments, cwd=tmp_path, **env)
        assert result.returncode == 1
        message = f"{prepared} has another dictionary than the training in {save}"
        assert result.stderr == f"wikitext103: error: {message}\n"
    assert (save / "dict.txt").read_text() == "b 1\n"


def test_evaluate_says_what_is_missing(prepared: Path, tmp_path: Path) -> None:
    save = tmp_path / "run"
    save.mkdir()

    def error(**env: object) -> str:
        result = run("evaluate.sh", save, cwd=tmp_path, **{"DATA_DIR": prepared, **env})
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        return result.stderr

    assert "run prepare.sh first" in error(DATA_DIR=tmp_path / "none")
    assert "checkpoint_best.pt: no such file; run train.sh first" in error()
    (save / "checkpoint_best.pt").touch()
    shutil.copy(prepared / "bin" / "dict.txt", save)
    assert "bin/train.bin: no such file, or an empty one" in error(SPLITS="valid train")
    (prepared / "bin" / "test.bin").write_bytes(b"")
    assert "bin/test.bin: no such file, or an empty one" in error()


def test_the_grid_has_the_options_of_train(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "wikitext103" / "bin").mkdir(parents=True)
    (tmp_path / "recipes" / "wikitext103").mkdir(parents=True)
    file = shutil.copy(RECIPE / "grid.yaml", tmp_path / "recipes" / "wikitext103")
    sweep = load_sweep(Path(file))
    settings = {(point.options["lr"], point.options["weight-decay"]) for point in sweep.points}
    assert settings == {(lr, decay) for lr in (1, 1.5, 2, 2.5) for decay in (1e-3, 1e-4, 0)}
    assert len(sweep.points) == 12

    def values(options: dict[str, list[str]]) -> dict[str, object]:
        """With numbers as numbers, and without what the sweep sees to itself."""
        own = {"--save-dir", "--user-dir", "--seed", "--log-format", "--distributed-world-size"}
        return {
            name: float(words[0]) if words and words[0][0].isdigit() else words
            for name, words in options.items()
            if name not in own
        }

    for point in sweep.points:
        arguments = fairseq_arguments(sweep.data, point.options)
        given = options_of(shlex.join(arguments).replace("=", " "))
        rate, decay = point.options["lr"], point.options["weight-decay"]
        assert values(given) == values(dry_run(prepared, ARCH, 1, rate, decay, NGPUS=1))
    assert sweep.evaluation.score == "perplexity"
    assert sweep.evaluation.options["context-window"] == 256
