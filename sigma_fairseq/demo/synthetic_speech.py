"""Speech without a download: a synthesised speaker who spells words in tones.

Nobody talks like that, but it needs what speech recognition needs. Each letter is a short sound of
its own, with one low and one high tone where a vowel has its first two formants. How high, fast and
loud they are changes from utterance to utterance, there are pauses between words, and all of it is
in noise: a model has to find where a letter is before it can tell which one.
"""

import string

import numpy as np

RATE = 16_000

# Tones in Hz: 5 by 6 pairs of them for 26 letters, further apart than a speaker's pitch varies.
_LOW = 300 * 1.3 ** np.arange(5)
_HIGH = 1200 * 1.25 ** np.arange(6)

# What an utterance draws from: a factor of all frequencies, seconds a letter, the level of the
# tones, and that of the noise as a share of it.
_PITCH = 0.92, 1.08
_LETTER = 0.065, 0.095
_LEVEL = 0.05, 0.4
_NOISE = 0.02, 0.2

# What each letter draws a factor of its length from, and each pause its seconds.
_STRETCH = 0.8, 1.25
_PAUSE = 0.08, 0.2

# Seconds in which a sound rises and falls: of two equal letters each is heard by itself.
_FADE = 0.01


def synthesize(text: str, random: np.random.Generator) -> np.ndarray:
    """Speaks words.

    Args:
        text: words of the letters a to z between spaces.
        random: what pitch, tempo, level and noise are drawn from.

    Returns:
        (samples,) fp32 at `RATE`, from -1 to 1.

    Raises:
        ValueError: the text has something else in it.
    """
    pitch, seconds, level, noise = (
        random.uniform(*span) for span in (_PITCH, _LETTER, _LEVEL, _NOISE)
    )
    pieces = [_pause(random)]
    for word in text.split():
        pieces += [_letter(letter, pitch, seconds, random) for letter in word]
        pieces.append(_pause(random))
    tones = np.concatenate(pieces)
    noisy = level * (tones + noise * random.standard_normal(len(tones)))
    return noisy.clip(-1, 1).astype(np.float32)


def _pause(random: np.random.Generator) -> np.ndarray:
    return np.zeros(int(random.uniform(*_PAUSE) * RATE))


def _letter(letter: str, pitch: float, seconds: float, random: np.random.Generator) -> np.ndarray:
    high, low = divmod(string.ascii_lowercase.index(letter), len(_LOW))
    frequencies = pitch * np.array([[_LOW[low]], [_HIGH[high]]])
    time = np.arange(int(seconds * random.uniform(*_STRETCH) * RATE)) / RATE
    phases = random.uniform(0, 2 * np.pi, (2, 1))
    tones = np.sin(2 * np.pi * frequencies * time + phases).mean(axis=0)
    return tones * (np.minimum(time, time[::-1]) / _FADE).clip(0, 1)
