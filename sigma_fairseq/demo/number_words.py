"""Parallel text without a download: English number words and their German translation.

The pair needs what translation needs. Words change places (forty-two, zweiundvierzig), fuse into
one, change their form with their neighbours (eins, einhundert, einundzwanzig) and have irregular
members (sechzehn, siebzig, dreißig), so that a model has to attend to the right part of the source
to get every piece of the target.

    >>> english(342_007)
    'three hundred forty-two thousand and seven'
    >>> german(342_007)
    'dreihundertzweiundvierzigtausendsieben'
"""

import random
from pathlib import Path

#: Number words are written for the integers from 0 to `LIMIT - 1`.
LIMIT = 1_000_000

_ENGLISH = (  # noqa: SIM905 (twenty words, one to a line, are no easier to read)
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_ENGLISH_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

# "ein" is what one is called inside a word; only at the end of a word is it "eins".
_GERMAN = (  # noqa: SIM905
    "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn "
    "sechzehn siebzehn achtzehn neunzehn"
).split()
_GERMAN_TENS = (
    *("zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"),
)


def english(number: int) -> str:
    """Spells a number in English words.

    Tens and units are joined by a hyphen. There is at most one "and": it stands before the last two
    digits of the whole number, if they are not both zero and anything comes before them. So 305 is
    "three hundred and five", 342,007 is "three hundred forty-two thousand and seven" (none before
    forty-two, which is not the end of the number) and 1,200 is "one thousand two hundred".

    Args:
        number: an integer from 0 to `LIMIT - 1`.

    Raises:
        ValueError: the number is not such an integer.
    """
    _check(number)
    thousands, rest = divmod(number, 1000)
    hundreds, last = divmod(rest, 100)
    words = []
    if thousands >= 100:
        words += [_ENGLISH[thousands // 100], "hundred"]
    if thousands % 100:
        words.append(_english_below_100(thousands % 100))
    if thousands:
        words.append("thousand")
    if hundreds:
        words += [_ENGLISH[hundreds], "hundred"]
    if last and words:
        words.append("and")
    if last or not words:
        words.append(_english_below_100(last))
    return " ".join(words)


def german(number: int) -> str:
    """Spells a number in German, which makes one word of it.

    One is always spoken: 1,100 is "eintausendeinhundert". It is "eins" at the end of the word and
    "ein" inside it.

    Args:
        number: an integer from 0 to `LIMIT - 1`.

    Raises:
        ValueError: the number is not such an integer.
    """
    _check(number)
    if number == 0:
        return _GERMAN[0]
    thousands, rest = divmod(number, 1000)
    word = _german_below_1000(thousands) + "tausend" if thousands else ""
    word += _german_below_1000(rest)
    return word + "s" if number % 100 == 1 else word


def write_corpus(directory: Path, seed: int, train: int, valid: int, test: int) -> None:
    """Writes `{train,valid,test}.{en,de}`, one number a line, the languages line by line in step.

    The numbers are drawn evenly from the whole range and none is in the corpus twice, so whatever a
    model gets right in the test part, it has not seen. The same arguments write the same bytes.

    Args:
        directory: where to write; made if it does not exist.
        seed: what the choice of numbers depends on.
        train: lines of the training part, and likewise `valid` and `test`; each at least 1.

    Raises:
        ValueError: a part is empty, or all of them together are more than there are numbers.
    """
    sizes = {"train": train, "valid": valid, "test": test}
    for part, size in sizes.items():
        if size < 1:
            raise ValueError(f"the {part} part needs at least 1 line, not {size}")
    lines = sum(sizes.values())
    if lines > LIMIT:
        raise ValueError(f"{lines} lines asked for, but there are {LIMIT} numbers")
    numbers = iter(random.Random(seed).sample(range(LIMIT), lines))
    directory.mkdir(parents=True, exist_ok=True)
    for part, size in sizes.items():
        chosen = [next(numbers) for _ in range(size)]
        for language, spell in (("en", english), ("de", german)):
            text = "".join(spell(number) + "\n" for number in chosen)
            (directory / f"{part}.{language}").write_text(text, encoding="utf-8")


def _check(number: int) -> None:
    if type(number) is not int or not 0 <= number < LIMIT:
        raise ValueError(f"number words go from 0 to {LIMIT - 1} in whole numbers, not {number!r}")


def _english_below_100(number: int) -> str:
    if number < 20:
        return _ENGLISH[number]
    tens, units = divmod(number, 10)
    return _ENGLISH_TENS[tens - 2] + (f"-{_ENGLISH[units]}" if units else "")


def _german_below_1000(number: int) -> str:
    """The part of a word for 1 to 999, and nothing for 0. One is "ein", wherever it stands."""
    hundreds, last = divmod(number, 100)
    word = f"{_GERMAN[hundreds]}hundert" if hundreds else ""
    if last < 20:
        return word + (_GERMAN[last] if last else "")
    tens, units = divmod(last, 10)
    return word + (f"{_GERMAN[units]}und" if units else "") + _GERMAN_TENS[tens - 2]
