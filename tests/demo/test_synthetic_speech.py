"""The synthesised speaker, by ear: what a Fourier transform hears in it."""

import string

import numpy as np
import pytest

from sigma_fairseq.demo.synthetic_speech import RATE, synthesize


def tones(letter: str, seed: int = 0) -> tuple[float, float]:
    """The strongest frequencies below and above 1 kHz."""
    spectrum = np.abs(np.fft.rfft(synthesize(letter, np.random.default_rng(seed))))
    frequencies = np.fft.rfftfreq(2 * (len(spectrum) - 1), 1 / RATE)
    below, above = frequencies < 1000, frequencies >= 1000
    return (
        float(frequencies[below][spectrum[below].argmax()]),
        float(frequencies[above][spectrum[above].argmax()]),
    )


def test_letters_differ_by_more_than_a_voice_varies() -> None:
    # The same seed is the same voice.
    heard = [tones(letter) for letter in string.ascii_lowercase]
    assert len(heard) == 26
    for index, (low, high) in enumerate(heard):
        for other_low, other_high in heard[:index]:
            apart = max(abs(np.log(low / other_low)), abs(np.log(high / other_high)))
            assert apart > np.log(1.08 / 0.92)
    for letter in "az":
        voices = np.log([tones(letter, seed) for seed in range(20)])
        assert 0.05 < np.ptp(voices, axis=0).min() <= np.ptp(voices, axis=0).max() < 0.19


def test_words_are_loud_and_pauses_are_not() -> None:
    for seed in range(10):
        samples = synthesize("ab ba", np.random.default_rng(seed))
        energy = np.square(samples[: len(samples) // 160 * 160]).reshape(-1, 160).mean(axis=1)
        loud = energy > 0.2 * energy.max()
        starts = np.flatnonzero(np.diff(loud.astype(int)) == 1)
        # Four letters; between the two words at least 80 ms of nothing else than noise.
        assert 2 <= len(starts) <= 4
        quiet = np.diff(np.flatnonzero(loud)) - 1
        assert 5 <= quiet.max() <= 22
        assert np.abs(samples).max() <= 1


def test_equal_letters_are_two_sounds() -> None:
    one = synthesize("e", np.random.default_rng(0))
    samples = synthesize("ee", np.random.default_rng(0))
    energy = np.square(samples[: len(samples) // 40 * 40]).reshape(-1, 40).mean(axis=1)
    loud = energy > 0.3 * energy.max()
    assert np.count_nonzero(np.diff(loud.astype(int)) == 1) >= 2
    assert len(samples) > len(one)


def test_same_draws_are_the_same_samples() -> None:
    first, again, other = (synthesize("one", np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other) or not np.array_equal(first, other)


def test_what_has_no_sound_is_an_error() -> None:
    with pytest.raises(ValueError, match="substring not found"):
        synthesize("forty-two", np.random.default_rng(0))
