"""Number words against pairs written by hand and against parsers that read them back."""

import re
from pathlib import Path

import pytest

from sigma_fairseq.demo.number_words import LIMIT, english, german, write_corpus

BY_HAND = [
    (0, "zero", "null"),
    (1, "one", "eins"),
    (7, "seven", "sieben"),
    (11, "eleven", "elf"),
    (12, "twelve", "zwölf"),
    (16, "sixteen", "sechzehn"),
    (17, "seventeen", "siebzehn"),
    (20, "twenty", "zwanzig"),
    (21, "twenty-one", "einundzwanzig"),
    (30, "thirty", "dreißig"),
    (66, "sixty-six", "sechsundsechzig"),
    (77, "seventy-seven", "siebenundsiebzig"),
    (100, "one hundred", "einhundert"),
    (101, "one hundred and one", "einhunderteins"),
    (111, "one hundred and eleven", "einhundertelf"),
    (305, "three hundred and five", "dreihundertfünf"),
    (999, "nine hundred and ninety-nine", "neunhundertneunundneunzig"),
    (1000, "one thousand", "eintausend"),
    (1001, "one thousand and one", "eintausendeins"),
    (1100, "one thousand one hundred", "eintausendeinhundert"),
    (1200, "one thousand two hundred", "eintausendzweihundert"),
    (16_017, "sixteen thousand and seventeen", "sechzehntausendsiebzehn"),
    (21_000, "twenty-one thousand", "einundzwanzigtausend"),
    (100_000, "one hundred thousand", "einhunderttausend"),
    (101_000, "one hundred one thousand", "einhunderteintausend"),
    (
        101_101,
        "one hundred one thousand one hundred and one",
        "einhunderteintausendeinhunderteins",
    ),
    (
        342_007,
        "three hundred forty-two thousand and seven",
        "dreihundertzweiundvierzigtausendsieben",
    ),
    (
        999_999,
        "nine hundred ninety-nine thousand nine hundred and ninety-nine",
        "neunhundertneunundneunzigtausendneunhundertneunundneunzig",
    ),
]

ENGLISH_VALUES = {
    **dict(zero=0, one=1, two=2, three=3, four=4, five=5, six=6, seven=7, eight=8, nine=9, ten=10),
    **dict(eleven=11, twelve=12, thirteen=13, fourteen=14, fifteen=15, sixteen=16, seventeen=17),
    **dict(eighteen=18, nineteen=19, twenty=20, thirty=30, forty=40, fifty=50, sixty=60),
    **dict(seventy=70, eighty=80, ninety=90),
}
GERMAN_VALUES = {
    **{"null": 0, "ein": 1, "eins": 1, "zwei": 2, "drei": 3, "vier": 4, "fünf": 5, "sechs": 6},
    **{"sieben": 7, "acht": 8, "neun": 9, "zehn": 10, "elf": 11, "zwölf": 12, "dreizehn": 13},
    **{"vierzehn": 14, "fünfzehn": 15, "sechzehn": 16, "siebzehn": 17, "achtzehn": 18},
    **{"neunzehn": 19, "zwanzig": 20, "dreißig": 30, "vierzig": 40, "fünfzig": 50},
    **{"sechzig": 60, "siebzig": 70, "achtzig": 80, "neunzig": 90},
}
MULTIPLIERS = {"hundred": 100, "thousand": 1000, "hundert": 100, "tausend": 1000}
# The longest first, or "siebzehn" would be read as far as "sieb" and "eins" as "ein".
GERMAN_PIECE = re.compile(
    "|".join(sorted([*GERMAN_VALUES, "hundert", "tausend", "und"], key=len, reverse=True))
)


def evaluate(pieces: list[str], values: dict[str, int]) -> int:
    """Adds up the pieces; a multiplier multiplies what has gathered since the one above it."""
    total = gathered = 0
    for piece in pieces:
        if piece in ("and", "und"):
            continue
        if piece not in MULTIPLIERS:
            gathered += values[piece]
        elif MULTIPLIERS[piece] == 100:
            gathered *= 100
        else:
            total, gathered = total + gathered * 1000, 0
    return total + gathered


def read_english(text: str) -> int:
    return evaluate(text.replace("-", " ").split(), ENGLISH_VALUES)


def read_german(word: str) -> int:
    pieces = GERMAN_PIECE.findall(word)
    assert "".join(pieces) == word
    return evaluate(pieces, GERMAN_VALUES)


@pytest.mark.parametrize(("number", "in_english", "in_german"), BY_HAND)
def test_pairs_written_by_hand(number: int, in_english: str, in_german: str) -> None:
    assert english(number) == in_english
    assert german(number) == in_german


def test_every_number_reads_back() -> None:
    every_kind = [*range(10_000), *range(0, LIMIT, 1000), *range(7, LIMIT, 23), LIMIT - 1]
    for number in every_kind:
        assert read_english(english(number)) == number
        assert read_german(german(number)) == number


def test_one_and_at_most_and_only_before_the_last_two_digits() -> None:
    for number in range(0, LIMIT, 31):
        before, _, last = english(number).partition(" and ")
        assert ("and" in english(number).split()) == (number > 100 and number % 100 != 0)
        if last:
            assert read_english(last) == number % 100
            assert "and" not in before.split() + last.split()


def test_eins_only_at_the_end_of_a_word() -> None:
    for number in range(1, LIMIT, 29):
        word = german(number)
        assert word.find("eins") == (len(word) - len("eins") if number % 100 == 1 else -1)


@pytest.mark.parametrize("spell", [english, german])
@pytest.mark.parametrize("number", [-1, LIMIT, 10**12, 1.0, "7", None, True])
def test_bad_number_gives_one_clear_line(spell: object, number: object) -> None:
    assert callable(spell)
    with pytest.raises(ValueError, match="number words go from 0 to 999999") as raised:
        spell(number)
    assert repr(number) in str(raised.value)
    assert "\n" not in str(raised.value)


def read_corpus(directory: Path) -> dict[str, list[str]]:
    return {
        f"{part}.{language}": (directory / f"{part}.{language}").read_text("utf-8").splitlines()
        for part in ("train", "valid", "test")
        for language in ("en", "de")
    }


def test_corpus_is_parallel_disjoint_and_of_the_size_asked_for(tmp_path: Path) -> None:
    write_corpus(tmp_path / "new" / "folder", seed=3, train=500, valid=40, test=60)
    corpus = read_corpus(tmp_path / "new" / "folder")
    numbers: list[int] = []
    for part, size in (("train", 500), ("valid", 40), ("test", 60)):
        read = [read_english(line) for line in corpus[f"{part}.en"]]
        assert len(read) == size
        assert read == [read_german(line) for line in corpus[f"{part}.de"]]
        numbers += read
    assert len(set(numbers)) == 600
    assert min(numbers) < LIMIT / 10 and max(numbers) > LIMIT * 9 / 10


def test_corpus_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_corpus(tmp_path / name, seed=seed, train=50, valid=5, test=5)
    a, b, c = (read_corpus(tmp_path / name) for name in "abc")
    assert a == b
    assert a["train.en"] != c["train.en"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1, 1), "the train part needs at least 1 line, not 0"),
        ((1, 1, -2), "the test part needs at least 1 line, not -2"),
        ((LIMIT, 1, 1), "1000002 lines asked for, but there are 1000000 numbers"),
    ],
)
def test_impossible_sizes_write_nothing(
    tmp_path: Path, sizes: tuple[int, int, int], message: str
) -> None:
    train, valid, test = sizes
    with pytest.raises(ValueError, match=f"^{message}$"):
        write_corpus(tmp_path / "corpus", seed=1, train=train, valid=valid, test=test)
    assert not (tmp_path / "corpus").exists()
