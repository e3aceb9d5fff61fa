"""The WMT'17 recipe's scripts, run as a user runs them, on archives of number words."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from statistics import stdev

import pytest
from fairseq.data import Dictionary, indexed_dataset

from tests.recipes.scripts import RECIPES, copy_project, options_of, run_script

RECIPE = RECIPES / "wmt17_en_de"
ARCH = "transformer_reparam_deepnorm_6l"
CORPORA = ["europarl-v7", "commoncrawl", "news-commentary-v12", "rapid2016"]
VARIANTS = ["preln", "postln", "deepnorm", "reparam_postln", "reparam_deepnorm"]
#: Depth → gradient accumulation on the paper's 8 GPUs (Appendix F).
ACCUMULATION = {6: 4, 18: 4, 50: 8, 100: 16}
BATCH = 4096 * 8 * 16


def run(script: str, *arguments: object, cwd: Path, **env: object) -> subprocess.CompletedProcess:
    """Runs a script of the recipe; see `run_script`."""
    return run_script(RECIPE / script, *arguments, cwd=cwd, **env)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project, in a path with a space, in which SMOKE=1 prepare.sh has run without arguments."""
    project = copy_project(tmp_path_factory.mktemp("wmt 17") / "project")
    prepared = run_script(project / "recipes/wmt17_en_de/prepare.sh", cwd=project, SMOKE=1)
    assert prepared.returncode == 0, prepared.stderr
    (project / "prepare.txt").write_text(prepared.stdout)
    return project


@pytest.fixture
def raw(project: Path, tmp_path: Path) -> Path:
    """What RAW_DIR holds before anything is fetched: nothing but the mirror."""
    shutil.copytree(project / "data/smoke/wmt17_en_de.raw/mirror", tmp_path / "raw" / "mirror")
    return tmp_path / "raw"


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A data folder for scripts that only look what is there."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prepared.txt").touch()
    return tmp_path / "data"


@pytest.mark.slow
def test_prepare_train_evaluate(project: Path, tmp_path: Path) -> None:
    """SMOKE=1, from archives to scores."""
    said = (project / "prepare.txt").read_text()
    for corpus in CORPORA:
        assert f"{corpus}: 121 of 123 pairs kept; left out: 1 empty, 1 not UTF-8\n" in said
        assert f"{corpus}: " in said.partition("splitting into pieces")[2]
    data = project / "data/smoke/wmt17_en_de"
    assert not data.with_name("wmt17_en_de.part").exists()
    assert {path.name for path in data.iterdir()} == {"bin", "bpe.codes", "prepared.txt", "text"}
    words = (data / "bin" / "dict.en.txt").read_text()
    assert (data / "bin" / "dict.de.txt").read_text() == words
    count = words.count("\n")
    assert f"200 merges of subword_nmt; a dictionary of {count}\n" in said
    kept = [int(line.split()[1]) for line in said.rpartition("into pieces")[2].split("\n")[1:5]]
    assert len(indexed_dataset.make_dataset(str(data / "bin/train.en-de.en"), "mmap")) == sum(kept)

    scripts = project / "recipes/wmt17_en_de"
    again = run_script(scripts / "prepare.sh", cwd=tmp_path, SMOKE=1)
    assert "is there already:\n" + (data / "prepared.txt").read_text() in again.stdout

    trained = run_script(scripts / "train.sh", ARCH, 3, cwd=tmp_path, SMOKE=1)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    save = project / "runs/smoke/wmt17_en_de" / ARCH / "seed3"
    assert (save / "checkpoint_best.pt").is_file()

    evaluated = run_script(
        *(scripts / "evaluate.sh", save, "--beam", 2, "--max-len-b", 5), cwd=tmp_path, SMOKE=1
    )
    assert evaluated.returncode == 0, evaluated.stderr
    scores = json.loads((save / "evaluation" / "scores.json").read_text())
    assert scores["test"]["sentences"] == 12
    assert scores["test"]["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|")
    assert scores["test"]["fairseq"] in evaluated.stdout
    assert f"| {save} | healthy | {scores['valid']['fairseq_bleu']:.2f} |" in evaluated.stdout
    assert "| DV 0/1 |" in evaluated.stdout
    translations = (save / "evaluation" / "hypotheses.test.de").read_text()
    assert translations.count("\n") == 12
    assert "&quot;" not in translations
    assert "@@" not in translations
    generated = (save / "evaluation" / "generate-test.txt").read_text()
    # What fairseq scores is tokenized, and escaped.
    assert "nicht mehr ." in generated
    assert "beam=2" in generated
    assert not (save / "evaluation.part").exists()


@pytest.mark.slow
def test_killed_and_started_again(project: Path, tmp_path: Path) -> None:
    """From unpacked files, with sentencepiece: the same data as without the interruption."""
    raw, out, env = tmp_path / "raw", tmp_path / "out", {"BPE": "sentencepiece", "VOCABULARY": 90}
    unpacked = project / "data/smoke/wmt17_en_de.raw"
    shutil.copytree(unpacked, raw, ignore=shutil.ignore_patterns("mirror", "*.tgz"))
    for language in ("en", "de"):
        corpus = raw / f"commoncrawl.de-en.{language}"
        corpus.write_bytes(corpus.read_bytes() * 100)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        [str(RECIPE / "prepare.sh"), str(raw), str(out)],
        env={**os.environ, "PATH": path} | {name: str(value) for name, value in env.items()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as killed:
        half = tmp_path / "out.part" / "tokenized" / "commoncrawl.en.part"
        while not (half.exists() and half.stat().st_size):
            assert killed.poll() is None
            time.sleep(0.002)
        os.killpg(killed.pid, signal.SIGKILL)
    assert not out.exists()
    left = {path.name for path in half.parent.iterdir()}
    assert "europarl-v7.json" in left
    assert not left & {"commoncrawl.en", "commoncrawl.de", "commoncrawl.json"}

    other = run("prepare.sh", raw, out, cwd=tmp_path)
    assert other.returncode == 1
    assert f"{out}.part was begun with other settings" in other.stderr
    assert other.stderr.count("\n") == 1

    resumed = run("prepare.sh", raw, out, cwd=tmp_path, **env)
    assert resumed.returncode == 0, resumed.stderr
    assert "europarl-v7: 121 of 123 pairs kept; left out: 1 empty, 1 not UTF-8 (before)\n" in (
        resumed.stdout
    )
    assert "commoncrawl: 12,100 of 12,300 pairs kept; left out: 100 empty, 100 not UTF-8\n" in (
        resumed.stdout
    )
    assert not (tmp_path / "out.part").exists()
    whole = run("prepare.sh", raw, tmp_path / "whole", cwd=tmp_path, **env)
    assert whole.returncode == 0, whole.stderr
    assert {path.name for path in out.iterdir()} == {"bin", "prepared.txt", "spm.model", "text"}
    for folder in ("bin", "text"):
        for file in (tmp_path / "whole" / folder).iterdir():
            if file.name != "preprocess.log":
                assert (out / folder / file.name).read_bytes() == file.read_bytes(), file
    # Not tokenized.
    words = Dictionary.load(str(out / "bin" / "dict.de.txt"))
    assert "&quot;" not in words.symbols
    assert any(word.startswith("▁") for word in words.symbols)


def test_a_wrong_checksum(raw: Path, tmp_path: Path) -> None:
    archive = raw / "mirror/wmt13/training-parallel-commoncrawl.tgz"
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    result = run("prepare.sh", raw, tmp_path / "out", cwd=tmp_path, SMOKE=1)
    assert result.returncode == 1
    assert "commoncrawl.tgz: not what was published (its SHA256 is wrong)" in result.stderr
    assert (raw / "training/europarl-v7.de-en.en").is_file()
    assert not list(raw.glob("*commoncrawl*"))
    assert not list(tmp_path.glob("out*"))


def test_an_archive_that_would_write_elsewhere(raw: Path, tmp_path: Path) -> None:
    archive = raw / "mirror/wmt13/training-parallel-europarl-v7.tgz"
    with tarfile.open(archive, "w:gz") as stream:
        entry = tarfile.TarInfo("training/../../../escaped.txt")
        stream.addfile(entry, BytesIO())
    sums = raw / "mirror" / "sha256.txt"
    lines = [line for line in sums.read_text().splitlines() if "europarl" not in line]
    lines.append(f"{sha256(archive.read_bytes()).hexdigest()}  {archive.name}")
    sums.write_text("".join(f"{line}\n" for line in lines))
    result = run("prepare.sh", raw, tmp_path / "out", cwd=tmp_path, SMOKE=1)
    assert result.returncode == 1
    assert "training-parallel-europarl-v7.tgz: " in result.stderr
    assert "outside the destination" in result.stderr
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not (raw / "training").exists()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({}, "raw: no training/europarl-v7.de-en.de, nor training-parallel-europarl-v7.tgz; "),
        ({"CORPORA": "rapid2016"}, "rapid2016.tgz: not what was published (its MD5 is wrong)"),
        ({"CORPORA": "europarl-v7 books"}, "raw: no training/europarl"),
        ({"CORPORA": "books"}, "CORPORA: no corpus books"),
        ({"BPE": "words"}, "BPE must be subword_nmt or sentencepiece, not 'words'"),
        ({"VOCABULARY": "4e4"}, "VOCABULARY must be a whole number from 1 on, not '4e4'"),
    ],
)
def test_prepare_refuses(env: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "rapid2016.tgz").write_bytes(b"another file")
    result = run("prepare.sh", tmp_path / "raw", tmp_path / "out", cwd=tmp_path, **env)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("depth", ACCUMULATION)
@pytest.mark.parametrize("variant", VARIANTS)
def test_table_10(variant: str, depth: int, prepared: Path, tmp_path: Path) -> None:
    dry = {"DATA_DIR": prepared, "NGPUS": 8, "DRY_RUN": 1}
    result = run("train.sh", f"transformer_{variant}_{depth}l", 1, cwd=tmp_path, **dry)
    assert result.returncode == 0
    assert result.stderr == ""
    options = options_of(result.stdout)
    assert options["--arch"] == [f"transformer_{variant}_{depth}l"]
    table = {
        "optimizer": "adam", "adam-betas": "(0.9, 0.98)", "adam-eps": 1e-8, "weight-decay": 1e-4,
        "lr": 4.5e-3 if "reparam" in variant else 1.4e-3, "lr-scheduler": "inverse_sqrt",
        "warmup-updates": 4000, "warmup-init-lr": 1e-7, "max-update": 100_000, "dropout": 0.4,
        "clip-norm": 0, "label-smoothing": 0.1, "update-freq": ACCUMULATION[depth],
        "max-tokens": BATCH // (8 * ACCUMULATION[depth]), "distributed-world-size": 8,
        "best-checkpoint-metric": "ppl", "required-batch-size-multiple": 1,
    }  # fmt: skip
    for option, expected in table.items():
        (value,) = options[f"--{option}"]
        assert value == expected if isinstance(expected, str) else float(value) == expected, option
    assert {"--amp", "--share-all-embeddings"} <= options.keys()
    assert "--cpu" not in options


@pytest.mark.parametrize(("gpus", "tokens"), [(1, None), (2, 2048), (16, None), (64, 8192)])
def test_an_update_stays_the_same(
    gpus: int, tokens: int | None, prepared: Path, tmp_path: Path
) -> None:
    env = {"DATA_DIR": prepared, "NGPUS": gpus, "DRY_RUN": 1, "MAX_TOKENS": tokens or ""}
    result = run("train.sh", "transformer_preln_50l", 1, "--lr", 1, cwd=tmp_path, **env)
    options = options_of(result.stdout)
    at_a_time, accumulated = (
        int(options[f"--{name}"][0]) for name in ("max-tokens", "update-freq")
    )
    assert at_a_time == (tokens or 8192)
    assert gpus * at_a_time * accumulated == 524_288
    assert result.stderr == (
        f"wmt17_en_de: 524288 tokens an update: {gpus} x {at_a_time}, --update-freq {accumulated}\n"
    )
    assert options["--lr"] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        ([ARCH, 1], {"NGPUS": 6}, "6 GPUs of 16384 tokens do not divide a batch of 524288; "),
        ([ARCH, 1], {"NGPUS": "all"}, "NGPUS and MAX_TOKENS must be whole numbers from 1 on"),
        ([ARCH, 1], {"NGPUS": 128}, "128 GPUs of 16384 tokens do not divide"),
        ([ARCH, "one"], {}, "the seed must be a whole number, not 'one'"),
        (["transformer_postln_12l", 1], {}, "no such architecture of Table 10: 'transformer_post"),
        (["transformer_reparam_noln_6l", 1], {}, "no such architecture of Table 10: "),
    ],
)
def test_train_refuses(
    arguments: list[object], env: dict[str, object], message: str, prepared: Path, tmp_path: Path
) -> None:
    env = {"DATA_DIR": prepared, "NGPUS": 8, "DRY_RUN": 1, **env}
    result = run("train.sh", *arguments, cwd=tmp_path, **env)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


GENERATE = """#!/usr/bin/env bash
echo "$*" >>"$RECORD"
while [ $# != 0 ]; do
    case $1 in
        --path) save=$(dirname "$2") ;;
        --gen-subset) subset=$2 ;;
        --results-path) results=$2 ;;
    esac
    shift
done
cp "$save/generate-$subset.txt" "$results/"
"""


def test_several_seeds(tmp_path: Path) -> None:
    """evaluate.sh on three seeds, one of them diverged, where fairseq-generate only copies."""
    project = copy_project(tmp_path / "project")
    data = project / "data" / "wmt17_en_de"
    (data / "text").mkdir(parents=True)
    for name in ("prepared.txt", "spm.model"):
        (data / name).touch()
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands" / "fairseq-generate").write_text(GENERATE)
    (tmp_path / "commands" / "fairseq-generate").chmod(0o755)
    bleus, saves = [30.25, 31.75], [tmp_path / f"seed {seed}" for seed in (1, 2, 3)]
    for name in ("valid", "test"):
        (data / "text" / f"{name}.de").write_text("Ein Satz, der stimmt.\n")
        for bleu, save in zip(bleus, saves, strict=False):
            save.mkdir(exist_ok=True)
            (save / f"generate-{name}.txt").write_text(
                "D-0\t-0.1\tEin Satz, der stimmt.\n"
                f"Generate {name} with beam=5: BLEU4 = {bleu}, 1/1/1/1\n"
            )
    saves[2].mkdir()
    for save, losses in zip(
        saves, ([9, 6, 5, 4], [9, 6, 5, 4], [9, 6, 5, 4, 20, 20, 20]), strict=True
    ):
        lines = [
            f"train_inner | {json.dumps({'loss': loss, 'num_updates': number, 'lr': 1})}"
            for number, loss in enumerate(losses, start=1)
        ]
        (save / "train.log").write_text("".join(f"x | INFO | {line}\n" for line in lines))
    for save in saves[:2]:
        (save / "checkpoint_best.pt").touch()

    evaluate = project / "recipes/wmt17_en_de/evaluate.sh"
    path = f"{tmp_path / 'commands'}{os.pathsep}{Path(sys.executable).parent}"
    result = subprocess.run(
        [evaluate, *saves, "--lenpen", "0.8"],
        env={**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
        | {"RECORD": str(tmp_path / "record")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    assert f"{saves[2]}: no checkpoint_best.pt to translate with" in result.stdout
    last = result.stdout.splitlines()[-1]
    mean = f"31.00 ± {stdev(bleus):.2f}"
    assert last == f"| mean of 2 | DV 1/3 | {mean} | 100.00 ± 0.00 | {mean} | 100.00 ± 0.00 |"
    commands = (tmp_path / "record").read_text().splitlines()
    assert len(commands) == 4
    for command in commands:
        assert "--beam 5 --post-process sentencepiece" in command
        assert "--lenpen 0.8" in command


def test_evaluate_says_what_is_missing(prepared: Path, tmp_path: Path) -> None:
    result = run("evaluate.sh", tmp_path / "run", cwd=tmp_path, DATA_DIR=tmp_path / "none")
    assert result.returncode == 1
    assert "run prepare.sh first" in result.stderr
    result = run("evaluate.sh", tmp_path / "run", cwd=tmp_path, DATA_DIR=prepared)
    assert result.returncode == 1
    assert result.stderr == (
        f"wmt17_en_de: error: {tmp_path}/run/train.log: no such file; run train.sh first\n"
    )
