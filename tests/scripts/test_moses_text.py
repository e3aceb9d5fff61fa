"""Text as Moses's scripts leave it, held against sacremoses as it is, and sacreBLEU's test sets."""

import random
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from sacrebleu.dataset.fake_sgml import FakeSGMLDataset
from sacremoses import MosesDetokenizer, MosesTokenizer

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import moses_text  # noqa: E402
from parallel_text import TextError  # noqa: E402

SENTENCES = [
    "Der Präsident z.B. sagte am 3.5. nichts, Dr. Maier (CDU) auch nicht.",
    "A 10-year-old's e-mail... cost 1,000.50 $ & <b>more</b> | [sic] at 9 a.m. no. 5.",
    "Straße.Ende U.S. usw. und so weiter.",
    "« Ça » va\u00a0? it's l'eau",
]


@pytest.mark.parametrize("language", ["en", "de"])
def test_the_faster_tokenizer_is_sacremoses(language: str) -> None:
    draw = random.Random(1)
    words = " ".join(SENTENCES).split()
    ours, reference = moses_text.Tokenizer(language), MosesTokenizer(language)
    for _ in range(20):
        sentence = " ".join(draw.choices(words, k=8))
        assert ours.tokenize(sentence) == reference.tokenize(sentence)


@pytest.mark.parametrize(
    ("language", "raw", "clean"),
    [
        # Quotes, spaces before punctuation, hyphens, escapes.
        ("de", "Er sagte: „Ja“ – und ging .", "Er sagte : &quot; Ja &quot; - und ging ."),
        (
            "en",
            "A state-of-the-art deal ; it’s",
            "A state @-@ of @-@ the @-@ art deal ; it &apos;s",
        ),
        ("en", "x | y [1] <b>", "x &#124; y &#91; 1 &#93; &lt; b &gt;"),
        # A comma goes out of quotes in German and into them in English; digits keep together.
        ("de", 'ein "Satz," 3\u00a0000', "ein &quot; Satz &quot; , 3,000"),
        ("en", 'a "phrase", 3\u00a0000', "a &quot; phrase , &quot; 3.000"),
        # Where Moses's script differs from sacremoses's default.
        ("de", "’90", "&quot; 90"),
        ("de", "zwei\u200bWörter\x07hier\u2028da", "zwei Wörter hier da"),
        ("en", " \u200b\x00 ", ""),
    ],
)
def test_training_text(language: str, raw: str, clean: str) -> None:
    cleaner = moses_text.SentenceCleaner(language, normalize=True, tokenize=True)
    assert cleaner(raw) == clean


def test_what_cannot_be_printed() -> None:
    """The general category of every character below 0x3000, by another implementation."""
    for number in range(0x3000):
        character = chr(number)
        expected = unicodedata.category(character).startswith("C")
        # Characters that are younger than one of the two tables.
        if unicodedata.category(character) != "Cn":
            assert bool(moses_text.NOT_PRINTABLE.match(character)) == expected, hex(number)


def test_without_a_tokenizer() -> None:
    cleaner = moses_text.SentenceCleaner("de", normalize=True, tokenize=False)
    assert cleaner("Er  sagte: „Ja, AT&T-Aktien“ .\x00") == 'Er sagte: "Ja, AT&T-Aktien" .'


def test_evaluation_text_is_not_normalized() -> None:
    cleaner = moses_text.SentenceCleaner("en", normalize=False, tokenize=True)
    assert cleaner("It’s “new” – 5\u00a0%") == "It &apos;s “ new ” – 5 %"


def test_pairs() -> None:
    convert = moses_text.PairCleaner(["en", "de"], normalize=True, tokenize=True)
    assert convert("a-b", "„ä“") == ("a @-@ b", "&quot; ä &quot;")
    assert convert("a", " \u200b") == convert("", "b") == "empty"


def test_detokenization_gives_the_text_back() -> None:
    text = 'Er sagte: "VW-Aktien (neu) kosten 1,5% mehr", z.B. heute.'
    cleaner = moses_text.SentenceCleaner("de", normalize=False, tokenize=True)
    assert MosesDetokenizer("de").detokenize(cleaner(text).split()) == text


SGML = """\
<srcset setid="newstest2016" srclang="any">
<doc sysid="ref" docid="a" genre="news" origlang="en">
<hl>
<seg id="1">  A &amp; B “x”  y\u00a0z </seg>
</hl>
<p>
<seg id="2">Second – <i>one</i>.</seg>
</p>
</doc>
</srcset>
"""


def test_segments_are_sacrebleus(tmp_path: Path) -> None:
    file, reference = tmp_path / "a.sgm", tmp_path / "reference"
    file.write_text(SGML, encoding="utf-8")
    dataset = SimpleNamespace(_clean=FakeSGMLDataset._clean)
    FakeSGMLDataset._convert_format(dataset, str(file), str(reference))
    assert moses_text.read_segments(file) == reference.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.sgm", "<doc>\n", "a.sgm: no sentences"),
        ("a.sgm", '<seg id="1">cut\n', "a.sgm: no </seg> in the line '<seg id=\"1\">cut'"),
        ("a.sgm", '<seg id="1"> </seg>\n', "a.sgm: a sentence is empty"),
        ("a.txt", "a\n\nb\n", "a.txt: a sentence is empty"),
    ],
)
def test_a_bad_set(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TextError) as caught:
        moses_text.read_segments(tmp_path / name)
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A corpus and a set; nothing done twice; faults in one line."""
    corpus = {"en": b"It's.\n\n\xe4\nb\n", "de": "„Es“.\nx\ny\nz\n".encode()}
    for language, content in corpus.items():
        (tmp_path / f"raw.{language}").write_bytes(content)
        (tmp_path / f"set.{language}").write_text("It’s so-so.\n")
    arguments = ["--languages", "en", "de", "--corpus", f"{tmp_path}/raw", "news"]
    arguments += ["--set", f"{tmp_path}/set.en", f"{tmp_path}/set.de", "valid", str(tmp_path)]
    assert moses_text.main(arguments) == 0
    line = "news: 2 of 4 pairs kept; left out: 1 empty, 1 not UTF-8"
    assert capsys.readouterr().out == f"valid: 1 pairs\n{line}\n"
    made = {path.name: path.read_text() for path in (tmp_path / "tokenized").glob("*.??")}
    assert made == {
        "news.en": "It &apos;s .\nb\n",
        "news.de": "&quot; Es &quot; .\nz\n",
        "valid.en": "It &apos;s so @-@ so .\n",
        "valid.de": "It &apos; s so @-@ so .\n",
    }
    assert (tmp_path / "text" / "valid.de").read_text() == "It’s so-so.\n"

    (tmp_path / "raw.de").write_text("another\n")
    assert moses_text.main(arguments) == 0
    assert f"{line} (before)" in capsys.readouterr().out
    (tmp_path / "tokenized" / "news.json").unlink()
    assert moses_text.main(arguments) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/raw.de ends after 1 lines, raw.en does not\n"
    )
    (tmp_path / "set.de").write_text("a\nb\n")
    assert moses_text.main(arguments) == 1
    assert "set.en has 1 sentences and" in capsys.readouterr().err
