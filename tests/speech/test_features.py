"""Log-mel features against a spectrum computed by numpy in float64, and files that are broken."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sigma_fairseq.speech.features import AudioError, file_of, frames_of, log_mel, read_features


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, samples)


def reference_log_mel(samples: np.ndarray) -> np.ndarray:
    """Kaldi's recipe for 16 kHz: DC removal, pre-emphasis, Povey window, power, HTK mel, log."""
    frames = np.lib.stride_tricks.sliding_window_view(samples * 2**15, 400)[::160]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    power = np.abs(np.fft.rfft((frames - 0.97 * before) * window, 512)) ** 2

    def mel(hertz: np.ndarray) -> np.ndarray:
        return 1127 * np.log(1 + hertz / 700)

    edges = np.linspace(mel(np.array(20.0)), mel(np.array(8000.0)), 82)
    position = mel(np.arange(257) * 16000 / 512)[:, None]
    rising = (position - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - position) / (edges[2:] - edges[1:-1])
    return np.log(power @ np.maximum(0, np.minimum(rising, falling)))


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_features_are_kaldis(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"audio.{kind}"
    soundfile.write(path, noise(20_000), 16_000)
    stored, _ = soundfile.read(path)
    features = read_features(str(path))
    assert features.dtype == np.float32 and features.shape == (frames_of(20_000, 16_000), 80)
    np.testing.assert_allclose(features, reference_log_mel(stored), atol=2e-3)
    np.testing.assert_array_equal(log_mel(path), features)


def test_channels_are_averaged(tmp_path: Path) -> None:
    channels = np.stack([noise(8000, 1), noise(8000, 2)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", channels, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", channels.mean(axis=1), 16_000, subtype="FLOAT")
    stereo, mono = (log_mel(tmp_path / f"{name}.wav") for name in ("stereo", "mono"))
    np.testing.assert_allclose(stereo, mono, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(tmp_path: Path, rate: int) -> None:
    """A tone of 1 kHz is loudest in the same bin as at 16 kHz, at the same level."""
    tones = {}
    for each in (rate, 16_000):
        tone = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(each) / each)
        soundfile.write(tmp_path / f"{each}.wav", tone, each, subtype="FLOAT")
        tones[each] = log_mel(tmp_path / f"{each}.wav")[10:-10]
    assert (tones[rate].argmax(axis=1) == tones[16_000].argmax(axis=1)).all()
    np.testing.assert_allclose(tones[rate].max(axis=1), tones[16_000].max(axis=1), atol=0.02)


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("samples", [1200, 7919, 16_001])
def test_frames_of_is_the_length(tmp_path: Path, rate: int, samples: int) -> None:
    soundfile.write(tmp_path / "audio.wav", noise(samples), rate)
    assert len(log_mel(tmp_path / "audio.wav")) == frames_of(samples, rate)


def test_stored_features_and_audio_in_a_zip(tmp_path: Path) -> None:
    features = noise(80 * 50).reshape(50, 80).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    soundfile.write(tmp_path / "audio.flac", noise(8000), 16_000)
    names = ("features.npy", "audio.flac")
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            archive.write(tmp_path / name, name)
        entries = [
            f"{tmp_path}/all.zip:{archive.getinfo(name).header_offset + 30 + len(name)}"
            f":{archive.getinfo(name).file_size}"
            for name in names
        ]
    assert [file_of(entry) for entry in entries] == [f"{tmp_path}/all.zip"] * 2
    np.testing.assert_array_equal(read_features(entries[0]), features)
    np.testing.assert_array_equal(read_features(str(tmp_path / "features.npy")), features)
    np.testing.assert_array_equal(read_features(entries[1]), log_mel(tmp_path / "audio.flac"))
    with pytest.raises(AudioError, match=r"all\.zip:1:20: "):
        read_features(f"{tmp_path}/all.zip:1:20")
    with pytest.raises(AudioError):
        read_features(f"{tmp_path}/all.zip:here:20")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((5, 40), np.float32), r"float32 of shape \(5, 40\), not float32 \(frames, 80\)"),
        (np.zeros((5, 80)), "float64 of shape"),
        (np.zeros(80, np.float32), r"shape \(80,\)"),
        (np.full((5, 80), np.nan, np.float32), "finite"),
    ],
)
def test_wrong_stored_features(tmp_path: Path, content: np.ndarray, message: str) -> None:
    np.save(tmp_path / "features.npy", content)
    with pytest.raises(AudioError, match=message):
        read_features(str(tmp_path / "features.npy"))


def test_unusual_rate_and_short_audio(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "rate.wav", noise(8000), 15_999)
    with pytest.raises(AudioError, match="cannot resample from 15999 Hz"):
        read_features(str(tmp_path / "rate.wav"))
    soundfile.write(tmp_path / "short.wav", noise(399), 16_000)
    with pytest.raises(AudioError, match="399 samples at 16000 Hz are shorter"):
        read_features(str(tmp_path / "short.wav"))
    with pytest.raises(FileNotFoundError, match=r"none\.flac"):
        read_features(str(tmp_path / "none.flac"))


@pytest.mark.parametrize("kind", ["flac", "wav", "npy"])
def test_damaged_bytes_are_one_kind_of_error(tmp_path: Path, kind: str) -> None:
    """Cut off or overwritten anywhere, a file has features or raises AudioError of one line."""
    whole = io.BytesIO()
    if kind == "npy":
        np.save(whole, np.zeros((50, 80), np.float32))
    else:
        soundfile.write(whole, noise(8000), 16_000, format=kind)
    path, errors = tmp_path / f"audio.{kind}", 0
    draw = np.random.default_rng(0)
    for trial in range(120):
        content = bytearray(whole.getvalue())
        for _ in range(3):
            content[draw.integers(200 if trial % 2 else len(content))] = draw.integers(256)
        path.write_bytes(content[: draw.integers(len(content))] if trial % 4 == 0 else content)
        try:
            assert read_features(str(path)).shape[1] == 80
        except AudioError as error:
            errors += 1
            assert "\n" not in str(error)
    assert errors > 10
