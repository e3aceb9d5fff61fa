"""The LibriSpeech recipe's scripts, run as a user runs them, on a tiny corpus of noise."""

import csv
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fairseq.optim import FairseqOptimizer
from fairseq.optim.lr_scheduler.cosine_lr_scheduler import CosineLRSchedule
from fairseq.optim.lr_scheduler.step_lr_scheduler import StepLRSchedule

from tests.integration.training import losses_of
from tests.recipes.hydra import hydra_losses
from tests.recipes.scripts import ROOT, copy_project, options_of, run_script, smoke, train_log

RECIPE = ROOT / "recipes" / "librispeech"
ARCH = "ctc_transformer_reparam_postln_36l"
TRAIN_SETS = ["train-clean-100", "train-clean-360", "train-other-500"]
SETS = [*TRAIN_SETS, "dev-clean", "dev-other", "test-clean", "test-other"]
#: Table 8: learning rates.
RATES = {
    ("ctc_transformer_postln", "adagrad"): 0.03,
    ("ctc_transformer_preln", "adagrad"): 0.5,
    ("ctc_transformer_reparam_noln", "adagrad"): 1,
    ("ctc_transformer_reparam_postln", "adagrad"): 1,
    ("ctc_transformer_postln", "lars"): 0.1,
    ("ctc_transformer_preln", "lars"): 0.5,
    ("ctc_transformer_reparam_noln", "lars"): 1,
    ("ctc_transformer_reparam_postln", "lars"): 0.3,
}


def run(
    script: str, *arguments: object, cwd: Path, recipe: Path = RECIPE, **env: object
) -> subprocess.CompletedProcess:
    """Runs a script of the recipe; see `run_script`."""
    return run_script(recipe / script, *arguments, cwd=cwd, **env)


def write_set(folder: Path, count: int) -> None:
    """Writes utterances of half a second of noise that say `A CAT`."""
    chapter = folder / "3" / "1"
    chapter.mkdir(parents=True)
    noise = np.random.default_rng(count)
    for number in range(count):
        audio = noise.uniform(-0.5, 0.5, 8000 + 160 * number)
        soundfile.write(chapter / f"3-1-{number:04}.flac", audio, 16000)
    lines = [f"3-1-{number:04} A CAT\n" for number in range(count)]
    (chapter / "3-1.trans.txt").write_text("".join(lines))


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A data folder that has all sets, for scripts that only look whether they are there."""
    data = tmp_path / "data"
    data.mkdir()
    for name in SETS:
        (data / f"{name}.tsv").touch()
    (data / "prepared.txt").touch()
    return data


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    """From made-up audio to word error rates, in paths with spaces."""
    project = copy_project(tmp_path / "pro ject")
    data = project / "data" / "smoke" / "librispeech"
    save = project / "runs" / "smoke" / "librispeech" / "100h" / ARCH / "lars" / "seed3"
    prepared = smoke(project, "librispeech/prepare.sh")
    assert "train-clean-100: 24 utterances, 0.02 hours" in prepared
    with (data / "test-clean.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [row["audio"] for row in rows] == [
        f"test-clean/{speaker}/1/{speaker}-1-{number:04}.flac"
        for speaker in (1, 2)
        for number in range(2)
    ]
    sets = ["dev-clean", "test-clean", "train-clean-100"]
    assert (data / "prepared.txt").read_text().split() == [f"{name}.tsv" for name in sets]

    arguments = ["100h", ARCH, "lars", 3, "--log-interval", 1]
    trained = smoke(project, "librispeech/train.sh", *arguments)
    assert f"training {ARCH}, lars, seed 3" in trained
    line, valid = train_log(save)
    assert [entry["dev-clean_num_updates"] for entry in valid] == ["3", "6"]
    losses = losses_of((save / "train.log").read_text())
    assert len(losses) == 6
    assert hydra_losses("librispeech", line, tmp_path / "hydra") == losses

    smoke(project, "librispeech/evaluate.sh", save, SETS="test-clean")
    scores = json.loads((save / "evaluation" / "scores.json").read_text())
    assert list(scores) == ["test-clean"]
    assert scores["test-clean"]["utterances"] == 4
    assert "D-0" in (save / "evaluation" / "generate-test-clean.txt").read_text()
    assert not (save / "evaluation.part").exists()


def dry_run(data: Path, *arguments: object, **env: object) -> dict[str, list[str]]:
    env = {"NGPUS": 8, **env}
    shown = run("train.sh", *arguments, cwd=data, DATA_DIR=data, DRY_RUN=1, **env)
    assert shown.returncode == 0, shown.stderr
    return options_of(shown.stdout)


@pytest.mark.parametrize(("family", "optimizer"), RATES)
def test_train_is_table_8(family: str, optimizer: str, prepared: Path) -> None:
    """Every setting that the table has, at both depths and both sizes of the data."""
    for depth, batch in ((36, 1920), (72, 960)):
        for hours, dropout, gamma in (("100h", "0.3", "1"), ("960h", "0.1", "2")):
            options = dry_run(prepared, hours, f"{family}_{depth}l", optimizer, 5)
            assert options["--arch"] == [f"{family}_{depth}l"]
            assert options["--optimizer"] == [optimizer]
            assert float(options["--lr"][0]) == RATES[family, optimizer]
            assert options["--clip-norm"] == ["1"]
            assert options["--weight-decay"] == ["0"]
            assert options["--max-update"] == ["500000"]
            assert options["--seed"] == ["5"]
            for name in ("dropout-input", "attention-dropout", "encoder-layerdrop"):
                assert options[f"--{name}"] == [dropout]
            frames = int(options["--max-tokens"][0]) * int(options["--update-freq"][0])
            assert frames * 8 == batch * 100
            if "reparam" in family:
                grouping = {"adagrad": "qk", "lars": "qkv"}[optimizer]
                assert options["--reparam-qkv"] == [grouping]
                assert options["--gamma-lr-scale"] == [gamma]
            else:
                assert not {"--reparam-qkv", "--gamma-lr-scale"} & set(options)
            train = TRAIN_SETS[:1] if hours == "100h" else TRAIN_SETS
            assert options["--train-subset"] == [",".join(train)]
            assert options["--valid-subset"] == ["dev-clean,dev-other"]


class Optimizer(FairseqOptimizer):
    """One that a scheduler may set the rate of."""

    def __init__(self) -> None:
        pass

    def set_lr(self, lr: float) -> None:
        pass


def rates_at(options: dict[str, list[str]], kind: type, *updates: int) -> list[float]:
    """What fairseq's own scheduler makes of the options."""
    settings = Namespace(
        lr=[float(options["--lr"][0])],
        warmup_updates=int(options["--warmup-updates"][0]),
        max_update=int(options["--max-update"][0]),
        lr_deacy_period=int(options.get("--lr-deacy-period", ["1"])[0]),
        lr_decay=float(options.get("--lr-decay", ["1"])[0]),
        **{"warmup_init_lr": -1, "min_lr": 0, "t_mult": 1, "lr_period_updates": -1},
        lr_shrink=0.1,
    )
    scheduler = kind(settings, Optimizer())
    return [scheduler.step_update(update) for update in updates]


def test_schedules_are_table_8s(prepared: Path) -> None:
    arch = "ctc_transformer_preln_36l"
    options = dry_run(prepared, "100h", arch, "adagrad", 1)
    assert options["--lr-scheduler"] == ["step"]
    rates = rates_at(options, StepLRSchedule, 32000, 64000, 329_999, 330_000, 499_999)
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.25, 0.25])
    options = dry_run(prepared, "100h", arch, "lars", 1)
    rates = rates_at(options, StepLRSchedule, 0, 299_999, 300_000, 499_999)
    assert rates == pytest.approx([0.5, 0.5, 0.25, 0.25])
    options = dry_run(prepared, "960h", arch, "adagrad", 1, SCHEDULE="cosine")
    assert options["--lr-scheduler"] == ["cosine"]
    rates = rates_at(options, CosineLRSchedule, 32000, 64000, 282_000, 499_999)
    assert rates == pytest.approx([0.25, 0.5, 0.25, 0], abs=1e-6)


def test_fewer_and_smaller_gpus_keep_the_batch(prepared: Path) -> None:
    for gpus, seconds, accumulated in ((8, 240, 1), (1, 240, 8), (2, 120, 8), (4, 60, 8)):
        env = {"NGPUS": gpus, "MAX_SECONDS": seconds}
        options = dry_run(prepared, "100h", ARCH, "lars", 1, **env)
        assert options["--distributed-world-size"] == [str(gpus)]
        assert options["--max-tokens"] == [str(100 * seconds)]
        assert options["--update-freq"] == [str(accumulated)]
    options = dry_run(prepared, "100h", ARCH, "lars", 1, "--lr", "2", CPU=1)
    assert options["--lr"] == ["2"]
    assert options["--update-freq"] == ["8"]
    assert "--cpu" in options


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["10h", ARCH, "lars", 1], {}, "100h or 960h, not '10h'"),
        (["100h", "transformer_postln_6l", "lars", 1], {}, "no such speech architecture"),
        (["100h", "ctc_transformer_postln_12l", "lars", 1], {}, "no such speech architecture"),
        (["100h", ARCH, "adam", 1], {}, "adagrad or lars, not 'adam'"),
        (["100h", ARCH, "lars", "one"], {}, "whole number, not 'one'"),
        (["100h", ARCH, "lars", 1], {"NGPUS": 3}, "3 GPUs of 240 s do not divide"),
        (["100h", ARCH, "lars", 1], {"NGPUS": 16}, "16 GPUs of 240 s do not divide"),
        (["100h", ARCH, "lars", 1], {"MAX_SECONDS": 0}, "whole numbers from 1 on"),
        (["100h", ARCH, "lars", 1], {"NGPUS": "all"}, "whole numbers from 1 on"),
        (["100h", ARCH, "lars", 1], {"SCHEDULE": "linear"}, "step or cosine, not 'linear'"),
        (["100h", ARCH, "lars", 1], {"DATA_DIR": "none"}, "run prepare.sh first"),
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


def test_train_says_which_set_is_missing(prepared: Path, tmp_path: Path) -> None:
    (prepared / "train-other-500.tsv").unlink()
    result = run("train.sh", "960h", ARCH, "lars", 1, cwd=tmp_path, DATA_DIR=prepared)
    assert result.returncode == 1
    assert "train-other-500.tsv: no such file; 960h needs this set" in result.stderr


def test_evaluate_says_what_is_missing(prepared: Path, tmp_path: Path) -> None:
    result = run("evaluate.sh", tmp_path / "run", cwd=tmp_path, DATA_DIR=tmp_path / "none")
    assert result.returncode == 1
    assert "run prepare.sh first" in result.stderr
    result = run("evaluate.sh", tmp_path / "run", cwd=tmp_path, DATA_DIR=prepared)
    assert result.returncode == 1
    assert "checkpoint_best.pt: no such file; run train.sh first" in result.stderr
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint_best.pt").touch()
    env = {"DATA_DIR": prepared, "SETS": "dev-clean test"}
    result = run("evaluate.sh", tmp_path / "run", cwd=tmp_path, **env)
    assert result.returncode == 1
    assert result.stderr == f"librispeech: error: {prepared}/test.tsv: no such file\n"


# What prepare.sh downloads: archives of the test's own, from a folder, in a copy of the recipe
# that has their checksums.


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """An archive of `dev-clean`, and beside it one that would write outside."""
    folder = tmp_path / "mirror"
    write_set(tmp_path / "LibriSpeech" / "dev-clean", 2)
    folder.mkdir()
    with tarfile.open(folder / "dev-clean.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "LibriSpeech", "LibriSpeech")
    shutil.rmtree(tmp_path / "LibriSpeech")
    with tarfile.open(folder / "dev-other.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("LibriSpeech/../../../outside"), io.BytesIO())
    return folder


@pytest.fixture
def recipe(tmp_path: Path, mirror: Path) -> Path:
    project = tmp_path / "project"
    shutil.copytree(RECIPE, project / "recipes" / "librispeech")
    (project / "scripts").symlink_to(ROOT / "scripts")
    sums = [
        f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n" for path in mirror.iterdir()
    ]
    (project / "recipes" / "librispeech" / "md5sum.txt").write_text("".join(sums))
    return project / "recipes" / "librispeech"


def fetch(recipe: Path, name: str, tmp_path: Path) -> subprocess.CompletedProcess:
    """Downloads one set, and stops at an OUT_DIR that is somebody else's."""
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "thesis.tex").touch()
    source = f"file://{tmp_path}/mirror"
    env = {"DOWNLOAD": 1, "SETS": name, "MIRROR": source}
    return run("prepare.sh", tmp_path / "Libri Speech", "out", cwd=tmp_path, recipe=recipe, **env)


def test_a_download_is_checked_and_unpacked(recipe: Path, tmp_path: Path) -> None:
    result = fetch(recipe, "dev-clean", tmp_path)
    assert "out exists and this script did not make it" in result.stderr
    chapter = tmp_path / "Libri Speech" / "dev-clean" / "3" / "1"
    assert len(list(chapter.glob("*.flac"))) == 2
    assert [path.name for path in (tmp_path / "Libri Speech").iterdir()] == ["dev-clean"]
    assert "fetching" not in fetch(recipe, "dev-clean", tmp_path).stdout


def test_an_interrupted_download_goes_on(recipe: Path, mirror: Path, tmp_path: Path) -> None:
    whole = (mirror / "dev-clean.tar.gz").read_bytes()
    corpus = tmp_path / "Libri Speech"
    corpus.mkdir()
    # If the first half were fetched again, this one, which is wrong, would not matter.
    (corpus / "dev-clean.tar.gz").write_bytes(bytes(len(whole) // 2))
    result = fetch(recipe, "dev-clean", tmp_path)
    assert result.returncode == 1
    assert "its MD5 is wrong" in result.stderr
    assert list(corpus.iterdir()) == []
    (corpus / "dev-clean.tar.gz").write_bytes(whole[: len(whole) // 2])
    assert "unpacking" in fetch(recipe, "dev-clean", tmp_path).stdout
    assert [path.name for path in corpus.iterdir()] == ["dev-clean"]


def test_what_cannot_be_fetched(recipe: Path, mirror: Path, tmp_path: Path) -> None:
    assert "SETS: no set dev-cleaner" in fetch(recipe, "dev-cleaner", tmp_path).stderr
    result = fetch(recipe, "dev-other", tmp_path)
    assert result.returncode == 1
    assert "outside the destination" in result.stderr
    assert not list(tmp_path.rglob("outside"))
    (mirror / "dev-clean.tar.gz").unlink()
    result = fetch(recipe, "dev-clean", tmp_path)
    assert result.returncode == 1
    assert "dev-clean.tar.gz: not fetched; run again to go on" in result.stderr


def test_the_checksums_are_of_the_seven_sets() -> None:
    lines = (RECIPE / "md5sum.txt").read_text().splitlines()
    names = {line.split("  ")[1] for line in lines}
    assert names == {f"{name}.tar.gz" for name in SETS}
    assert all(len(line.split("  ")[0]) == 32 for line in lines)


def test_prepare_keeps_a_folder_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    result = run("prepare.sh", tmp_path / "corpus", tmp_path / "out", cwd=tmp_path)
    assert result.returncode == 1
    assert "did not make it" in result.stderr
    result = run("prepare.sh", tmp_path / "none", tmp_path / "new", cwd=tmp_path)
    assert "none: no such folder; DOWNLOAD=1 fetches it" in result.stderr
