"""The script that makes a data folder from a corpus in LibriSpeech's layout."""

import csv
import io
import subprocess
import sys
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from fairseq.data.audio.audio_utils import get_features_or_waveform

SCRIPT = Path(__file__).parents[2] / "scripts" / "librispeech_manifests.py"
GOOD = {"7-1-0000": ("IT'S A TEST", 21000), "7-1-0001": ("NO", 9000), "12-3-0000": ("AM", 8240)}


def write_chapter(folder: Path, utterances: dict[str, tuple[str | None, int | None]]) -> None:
    """Writes utterances of one chapter: text and samples of noise, either of which may miss."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for name, (_, samples) in utterances.items():
        if samples is not None:
            audio = noise.uniform(-0.5, 0.5, samples)
            soundfile.write(folder / f"{name}.flac", audio, 16000, subtype="PCM_16")
    lines = [f"{name} {text}\n" for name, (text, _) in utterances.items() if text is not None]
    chapter = next(iter(utterances)).rpartition("-")[0]
    (folder / f"{chapter}.trans.txt").write_text("".join(lines))


def write_corpus(corpus: Path) -> None:
    """Three good utterances, eight bad ones, and a set to validate on."""
    train = corpus / "train-clean-100"
    write_chapter(train / "7" / "1", {n: GOOD[n] for n in ("7-1-0000", "7-1-0001")})
    write_chapter(train / "12" / "3", {"12-3-0000": GOOD["12-3-0000"]})
    write_chapter(
        train / "9" / "2",
        {
            "9-2-0000": ("SILENCE", 0),
            "9-2-0001": (None, 9000),
            "9-2-0002": ("NOWHERE", None),
            "9-2-0003": (" ", 9000),
            "9-2-0004": ("CAFÉ 9", 9000),
            # 9040 samples are 55 frames, a third of them 19: "A|GOOD|GREEN|BOOK" has 17 and 3.
            "9-2-0005": ("A GOOD GREEN BOOK", 9040),
            "9-2-0006": ("CORRUPT", 0),
            "9-2-0007": ("SHORT", 300),
        },
    )
    soundfile.write(train / "9" / "2" / "9-2-0000.flac", np.zeros(16000), 16000)
    (train / "9" / "2" / "9-2-0006.flac").write_bytes(b"fLaC and no more")
    write_chapter(corpus / "dev-clean" / "5" / "1", {"5-1-0000": ("A", 8000)})


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "Libri Speech"
    write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def made(corpus: Path) -> tuple[Path, str]:
    """A data folder with stored features, and what the script said."""
    out = corpus.parent / "data 1"
    result = run(corpus, out, "--features")
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def test_the_fit_are_listed_and_the_unfit_named(corpus: Path, made: tuple[Path, str]) -> None:
    out, said = made
    named = next(line for line in said.splitlines() if "left out" in line)
    assert named.startswith("train-clean-100: left out 8 of 11 unfit: ")
    for reason in (
        "silent 1 (9-2-0000)",
        "no transcript 1 (9-2-0001)",
        "no recording 1 (9-2-0002)",
        "empty transcript 1 (9-2-0003)",
        "letters outside a-z and ' 1 (9-2-0004)",
        "too short for the transcript 1 (9-2-0005)",
        "unreadable 2 (9-2-0006, 9-2-0007)",
    ):
        assert reason in named
    hours = sum(1 + (samples - 400) // 160 for _, samples in GOOD.values()) / 360000
    assert f"train-clean-100: 3 utterances, {hours:.2f} hours" in said
    found = rows(out / "train-clean-100.tsv")
    assert [row["id"] for row in found] == sorted(GOOD)
    for row in found:
        text, samples = GOOD[row["id"]]
        assert list(row) == ["id", "audio", "n_frames", "tgt_text", "speaker"]
        assert int(row["n_frames"]) == 1 + (samples - 400) // 160
        assert row["tgt_text"] == text.lower()
        assert row["speaker"] == row["id"].split("-")[0]
    assert yaml.safe_load((out / "config.yaml").read_text())["audio_root"] == str(out)
    letters = [line.split() for line in (out / "dict.txt").read_text().splitlines()]
    assert letters == [[letter, "1"] for letter in "abcdefghijklmnopqrstuvwxyz'|"]


def test_fairseq_reads_the_stored_features(made: tuple[Path, str]) -> None:
    """Where the manifest says, fairseq finds what zipfile finds under the name."""
    out, _ = made
    archive = zipfile.ZipFile(out / "train-clean-100.zip")
    assert archive.testzip() is None
    assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    for row in rows(out / "train-clean-100.tsv"):
        read = get_features_or_waveform(str(out / row["audio"]))
        named = np.load(io.BytesIO(archive.read(f"{row['id']}.npy")))
        assert np.array_equal(read, named)
        assert read.shape == (int(row["n_frames"]), 80)
        assert read.dtype == np.float32
        assert np.isfinite(read).all()


def test_a_stopped_run_goes_on(corpus: Path, made: tuple[Path, str]) -> None:
    out, _ = made
    (out / "dev-clean.tsv").unlink()
    (out / "dev-clean.zip").rename(out / "dev-clean.zip.part")
    kept = ("train-clean-100.tsv", "train-clean-100.zip")
    before = {name: (out / name).stat().st_mtime_ns for name in kept}
    again = run(corpus, out, "--features")
    assert again.returncode == 0
    assert again.stdout.splitlines() == [
        "train-clean-100: there already",
        "dev-clean: 1 utterances, 0.00 hours",
    ]
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == before
    assert sorted(path.name for path in out.iterdir()) == [
        *("config.yaml", "dev-clean.tsv", "dev-clean.zip", "dict.txt"),
        *("train-clean-100.tsv", "train-clean-100.zip"),
    ]


def test_strict_ends_with_the_unfit(corpus: Path, tmp_path: Path) -> None:
    result = run(corpus, tmp_path / "out", "--strict", "--features")
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: train-clean-100: 8 of 11 unfit: ")
    assert "silent 1 (9-2-0000)" in error
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.yaml", "dict.txt"]


def test_missing_sets_and_another_corpus(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_from_file_location("librispeech_manifests", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    bare, out = tmp_path / "bare", tmp_path / "out"

    def error(folder: Path) -> str:
        assert script.main([str(folder), str(out)]) == 1
        return capsys.readouterr().err

    (bare / "train-clean-100").mkdir(parents=True)
    assert error(bare) == f"error: {bare}: no dev-clean or dev-other in it\n"
    (bare / "dev-other").mkdir()
    fault = "neither .flac nor .trans.txt files in it"
    assert error(bare) == f"error: {bare}/train-clean-100: {fault}\n"
    assert error(corpus).startswith(f"error: {out} was begun with another corpus")
    (bare / "train-clean-100" / "1-1.trans.txt").write_bytes(b"1-1-0000 \xff\n")
    assert error(bare).startswith(f"error: {bare}/train-clean-100/1-1.trans.txt: 'utf-8' codec")
