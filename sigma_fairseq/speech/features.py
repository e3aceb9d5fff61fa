"""Log-mel features of audio files, computed on the fly or stored."""

import io
import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
import torchaudio
from fairseq.data.audio.audio_utils import parse_path, read_from_stored_zip
from numpy.lib.format import MAGIC_PREFIX, read_array
from torchaudio.compliance import kaldi

SAMPLE_RATE = 16_000
MEL_BINS = 80
WINDOW, SHIFT = 400, 160  # samples: 25 ms and 10 ms
#: Of a rate's samples that begin where one of 16 kHz does, every so many at most: 441 for 44.1 kHz.
#: The resampling filter grows with it, without end for the rates of damaged headers.
MAX_PERIOD = 1000


class AudioError(ValueError):
    """Audio or stored features that cannot be used; one line that names the file and says why."""


def frames_of(samples: int, rate: int) -> int:
    """Frames that `log_mel` makes of so many samples a channel at a rate in Hz."""
    resampled = -(-samples * SAMPLE_RATE // rate)
    return max(0, 1 + (resampled - WINDOW) // SHIFT)


def log_mel(path_or_file: str | Path | BinaryIO) -> np.ndarray:
    """80 log-mel features a frame, 25 ms frames every 10 ms, as Kaldi computes them (Appendix E).

    Channels are averaged, other rates resampled to 16 kHz; there is no dither.

    Args:
        path_or_file: FLAC, WAV or what else libsndfile reads.

    Returns:
        (frames, 80) fp32, not normalized; as many frames as `frames_of` says.

    Raises:
        AudioError: it cannot be decoded or resampled, or is shorter than one frame.
    """
    try:
        samples, rate = soundfile.read(path_or_file, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(error.error_string) from error
    if rate // math.gcd(rate, SAMPLE_RATE) > MAX_PERIOD:
        raise AudioError(f"cannot resample from {rate} Hz")
    waveform = torch.from_numpy(samples).mean(dim=1)
    if frames_of(len(waveform), rate) < 1:
        raise AudioError(f"{len(waveform)} samples at {rate} Hz are shorter than a frame of 25 ms")
    waveform = torchaudio.functional.resample(waveform, rate, SAMPLE_RATE)
    # Kaldi's features are of 16-bit integers.
    features = kaldi.fbank(waveform[None] * 2**15, num_mel_bins=MEL_BINS)
    return features.numpy()


def file_of(entry: str) -> str:
    """The file that an entry of a manifest is in: without the place in a zip."""
    return entry.rsplit(":", 2)[0] if Path(entry).suffix.startswith(".zip:") else entry


def read_features(path: str) -> np.ndarray:
    """Log-mel features of an entry of a manifest.

    Args:
        path: an audio file; a `.npy` of features; or either as `FILE.zip:OFFSET:LENGTH`, bytes of
            an uncompressed zip.

    Returns:
        (frames, 80) fp32, finite.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: it cannot be used.
    """
    if not Path(file_of(path)).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        file, where = parse_path(path)
        data = read_from_stored_zip(file, *where) if where else Path(file).read_bytes()
        stored = data.startswith(MAGIC_PREFIX)
        features = read_array(io.BytesIO(data)) if stored else log_mel(io.BytesIO(data))
    except Exception as error:  # what the decoders raise for damaged bytes has no end
        raise AudioError(f"{path}: {' '.join(str(error).split())}") from error
    if features.ndim != 2 or features.shape[1] != MEL_BINS or features.dtype != np.float32:
        raise AudioError(
            f"{path}: {features.dtype} of shape {features.shape}, not float32 (frames, {MEL_BINS})"
        )
    if not np.isfinite(features).all():
        raise AudioError(f"{path}: not all numbers are finite")
    return features
