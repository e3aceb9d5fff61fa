"""Corpora in pieces, as Moses's clean-corpus-n would leave them."""

import random
import sys
from pathlib import Path

import pytest
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import subwords  # noqa: E402


def write(folder: Path, name: str, pairs: list[tuple[str, str]]) -> None:
    for side, language in enumerate(("en", "de")):
        lines = "".join(f"{pair[side]}\n" for pair in pairs)
        (folder / f"{name}.{language}").write_text(lines, encoding="utf-8")


def random_pairs(count: int, most: int) -> list[tuple[str, str]]:
    """Words of a few letters; the sides differ in length by up to a factor of two."""
    draw = random.Random(count)

    def sentence(words: int) -> str:
        return " ".join(
            "".join(draw.choices("abcdeäß", k=draw.randint(1, 6))) for _ in range(words)
        )

    lengths = [draw.randint(1, most) for _ in range(count)]
    return [(sentence(n), sentence(max(1, int(n * draw.uniform(0.6, 2))))) for n in lengths]


def kept(source: str, target: str) -> bool:
    """The rules of clean-corpus-n, one after another."""
    first, second = len(source.split(" ")), len(target.split(" "))
    if first > 250 or second > 250 or first < 1 or second < 1:
        return False
    return not (first / second > 1.5 or second / first > 1.5)


@pytest.mark.parametrize("bpe", subwords.BPES)
def test_pairs(bpe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpora = {"a": random_pairs(60, 12), "b": random_pairs(30, 150)}
    for name, pairs in corpora.items():
        write(tmp_path, name, pairs)
    stems = [str(tmp_path / name) for name in corpora]
    model = tmp_path / "model"
    learn = ["train", "--bpe", bpe, "--vocabulary", "60", "--model", str(model)]
    assert (
        subwords.main([*learn, *(f"{stem}.{side}" for stem in stems for side in ("en", "de"))]) == 0
    )
    split = subwords.PairEncoder(model, bpe, keep_all=True)

    apply = ["pairs", "--bpe", bpe, "--model", str(model), "--languages", "en", "de"]
    capsys.readouterr()
    assert subwords.main([*apply, "--out", str(tmp_path / "train"), *stems]) == 0
    expected, lines = [], []
    for name, pairs in corpora.items():
        pieces = [split(*pair) for pair in pairs]
        good = [pair for pair in pieces if kept(*pair)]
        expected += good
        lines.append(f"{name}: {len(good)} of {len(pairs)} pairs kept")
        assert 0 < len(good) < len(pairs)
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(";")[0] for line in printed] == lines
    assert "with lengths of a ratio above 1.5" in printed[0]
    assert "longer than 250 pieces" in printed[1]
    for side, language in enumerate(("en", "de")):
        text = (tmp_path / f"train.{language}").read_text(encoding="utf-8")
        assert text.splitlines() == [pair[side] for pair in expected]

    assert subwords.main([*apply, "--keep-all", "--out", str(tmp_path / "valid"), stems[1]]) == 0
    assert "b: 30 of 30 pairs kept" in capsys.readouterr().out
    assert subwords.main([*apply, "--out", str(tmp_path / "train"), *stems]) == 0
    assert capsys.readouterr().out.count("(before)") == 2


def test_merges_are_those_of_one_file(tmp_path: Path) -> None:
    """Learned from several files, on all cores, and from all words at once by subword-nmt alone."""
    write(tmp_path, "a", random_pairs(80, 10))
    files = [tmp_path / "a.en", tmp_path / "a.de"]
    subwords.train_subword_nmt(files, 50, tmp_path / "codes")
    joined = "".join(file.read_text(encoding="utf-8") for file in files)
    with (tmp_path / "reference").open("w+", encoding="utf-8") as stream:
        learn_bpe(joined.splitlines(), stream, 50)
        reference = BPE(stream)
    assert (tmp_path / "codes").read_bytes() == (tmp_path / "reference").read_bytes()
    encoder = subwords.PairEncoder(tmp_path / "codes", "subword_nmt", keep_all=True)
    assert encoder("abcde ab", "ß") == (reference.segment("abcde ab"), "ß")


def test_what_is_to_be_kept_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "a", [("aab aab", "aab"), ("", "b")])
    subwords.train_subword_nmt([tmp_path / "a.en"], 2, tmp_path / "codes")
    arguments = ["pairs", "--bpe", "subword_nmt", "--model", str(tmp_path / "codes"), "--keep-all"]
    arguments += ["--languages", "en", "de", "--out", str(tmp_path / "out"), str(tmp_path / "a")]
    assert subwords.main(arguments) == 1
    assert capsys.readouterr().err.endswith("error: a: 1 of 2 pairs kept; left out: 1 empty\n")
    assert not (tmp_path / "out.json").exists()
