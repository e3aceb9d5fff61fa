"""The builder of a corpus of joined digits, on recordings that are tones."""

import io
import re
import subprocess
import sys
import tarfile
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

SCRIPT = Path(__file__).parents[2] / "scripts" / "spoken_digits.py"
SPEAKERS = ["ann", "bob", "cy"]
DIGITS = ["ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"]
SECONDS = 0.1


def tone(speaker: str, digit: int, number: int) -> np.ndarray:
    """8 kHz samples: the digit is the frequency, the number the loudness."""
    time = np.arange(int(8000 * SECONDS)) / 8000
    loudness = (number + 1) / 20 * (1 + SPEAKERS.index(speaker)) / 3
    return loudness * np.sin(2 * np.pi * (300 + 100 * digit) * time)


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module: importing it anew for every test would take most of the time."""
    spec = spec_from_file_location("spoken_digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["spoken_digits"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of 12 recordings of each digit by each of three speakers."""
    path = tmp_path_factory.mktemp("raw") / "recordings.tar"
    with tarfile.open(path, "w") as archive:
        for speaker in SPEAKERS:
            for digit in range(10):
                for number in range(12):
                    stream = io.BytesIO()
                    soundfile.write(stream, tone(speaker, digit, number), 8000, format="WAV")
                    member = tarfile.TarInfo(f"recordings/{digit}_{speaker}_{number}.wav")
                    member.size = stream.tell()
                    stream.seek(0)
                    archive.addfile(member, stream)
    return path


@pytest.fixture(scope="module")
def corpus(recordings: Path) -> Path:
    out = recordings.parent / "a corpus"
    options = ["--left-out", "bob", "--train-passes", "2"]
    built = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(recordings), str(out), *options],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert re.search(r"^test-other: \d+ utterances, 0\.\d minutes$", built.stdout, re.M)
    return out


def transcripts(folder: Path) -> dict[str, list[str]]:
    lines = [line for path in folder.rglob("*.trans.txt") for line in path.read_text().splitlines()]
    return {line.split()[0]: line.split()[1:] for line in lines}


def test_each_recording_is_in_every_chapter_of_its_set(corpus: Path) -> None:
    """2 (or 1) speakers × recordings of a digit in the set × chapters, counted by hand."""
    names: list[str] = []
    for name, times in (
        ("train-clean-100", 2 * 2 * 2),
        ("dev-clean", 2 * 5 * 4),
        ("test-clean", 2 * 5 * 4),
        ("test-other", 1 * 5 * 4),
    ):
        texts = transcripts(corpus / name)
        assert Counter(word for words in texts.values() for word in words) == dict.fromkeys(
            DIGITS, times
        )
        assert {len(words) for words in texts.values()} <= {3, 4, 5, 6, 7}
        assert sorted(texts) == sorted(path.stem for path in (corpus / name).rglob("*.flac"))
        names += texts
    assert len(names) == len(set(names))
    assert {path.name for path in (corpus / "test-other").iterdir()} == {"2"}
    assert {path.name for path in (corpus / "train-clean-100").iterdir()} == {"1", "3"}


def test_the_audio_is_what_the_transcript_says(corpus: Path) -> None:
    """A digit's frequency is found again, at the official numbers' loudness, pauses between."""
    checked = 0
    for name, words in transcripts(corpus / "test-clean").items():
        speaker, chapter, _ = name.split("-")
        path = corpus / "test-clean" / speaker / chapter / f"{name}.flac"
        assert soundfile.info(path).subtype == "PCM_16"
        samples, rate = soundfile.read(path)
        assert rate == 16000
        loud = np.abs(samples) > 0.02 * np.abs(samples).max()
        # A silence of 30 ms is a pause: the tones' own zero crossings are far shorter.
        edges = np.flatnonzero(np.diff(np.flatnonzero(loud)) > 480)
        indexes = np.flatnonzero(loud)
        starts = np.concatenate([[indexes[0]], indexes[edges + 1]])
        ends = np.concatenate([indexes[edges], [indexes[-1]]])
        assert len(starts) == len(words)
        pauses = (starts[1:] - ends[:-1]) / 16000
        assert (pauses > 0.045).all()
        assert (pauses < 0.31).all()
        for word, start, end in zip(words, starts, ends, strict=True):
            spectrum = np.abs(np.fft.rfft(samples[start:end], 16000))
            assert abs(spectrum.argmax() - (300 + 100 * DIGITS.index(word))) < 15
            loudness = np.abs(samples[start:end]).max() * 3 / (1 if speaker == "1" else 3) * 20
            assert loudness < 5.8  # numbers 0 to 4 have 1 to 5
            checked += 1
    assert checked == 2 * 5 * 4 * 10


def test_the_same_seed_gives_the_same_bytes(
    recordings: Path, corpus: Path, tmp_path: Path, script: Any
) -> None:
    with tarfile.open(recordings) as archive:
        archive.extractall(tmp_path, filter="data")
    options = ("--left-out", "bob", "--train-passes", "2")
    unpacked, again, reseeded = (str(tmp_path / name) for name in ("recordings", "again", "other"))
    assert script.main([unpacked, again, *options]) == 0
    assert script.main([str(recordings), reseeded, *options, "--seed", "2"]) == 0

    def content(folder: Path) -> dict[Path, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder): path.read_bytes() for path in files}

    assert content(tmp_path / "again") == content(corpus)
    other = content(tmp_path / "other")
    assert other != content(corpus)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other", "recordings"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RECORDINGS", "OUT", "--left-out", "dan"], "no speaker dan; there are ann, bob, cy"),
        (["RECORDINGS", "."], r"/.* exists"),
        ([".", "OUT"], r"\.: no recordings named DIGIT_SPEAKER_N\.wav"),
        (["none.tar", "OUT"], "none.tar: No such file"),
        (["text.tar", "OUT"], "text.tar: neither a folder nor"),
        (["damaged", "OUT"], "damaged: 3_ann_1.wav: "),
        (["few", "OUT"], "train-clean-100: only 0 recordings of ann"),
    ],
)
def test_bad_input_is_one_line(
    recordings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: Any,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.tar").write_text("no archive")
    for name in ("damaged", "few"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "3_ann_1.wav").write_bytes(b"RIFF")
    for speaker in ("ann", "bob"):
        soundfile.write(tmp_path / "few" / f"3_{speaker}_1.wav", tone(speaker, 3, 1), 8000)
    before = sorted(tmp_path.iterdir())
    status = script.main([str(recordings) if a == "RECORDINGS" else a for a in arguments])
    assert status == 1
    said = capsys.readouterr().err
    assert re.match(f"error: .*{message}", said)
    assert said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
