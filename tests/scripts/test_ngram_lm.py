"""Language models written by scripts/ngram_lm.py, as KenLM reads them."""

import itertools
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import kenlm
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "ngram_lm.py"
WORDS = ("one", "two", "three")


def run(
    *arguments: object, path: str = "/usr/bin:/bin", code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Runs the script with a PATH on which there is no lmplz, and checks its exit status."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    result = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    return result


@pytest.fixture(scope="module")
def sentences() -> list[list[str]]:
    draw = random.Random(3)
    # Never "three three", nor a "three" at the beginning: some n-grams must be unseen.
    lines = [draw.choices(WORDS, k=draw.randint(1, 5)) for _ in range(30)]
    return [line for line in lines if line[0] != "three" and "three three" not in " ".join(line)]


@pytest.fixture(scope="module")
def text(sentences: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(" ".join(line) + "\n" for line in sentences))
    return path


@pytest.fixture(scope="module")
def model(text: Path) -> Callable[[int], kenlm.Model]:
    """model(order) → what KenLM reads."""

    def estimate(order: int) -> kenlm.Model:
        arpa = text.parent / f"{order}.arpa"
        run("--order", order, text, arpa)
        return kenlm.Model(str(arpa))

    return estimate


def kenlm_probability(model: kenlm.Model, history: tuple[str, ...], word: str) -> float:
    """p(word | <s> history) as KenLM has it."""
    state, after = kenlm.State(), kenlm.State()
    model.BeginSentenceWrite(state)
    for each in history:
        model.BaseScore(state, each, after)
        state, after = after, state
    return 10 ** model.BaseScore(state, word, after)


def witten_bell(sentences: list[list[str]], history: list[str], word: str) -> float:
    """p(word | history), counted anew from the text at each level of the recursion."""
    followers = []
    for sentence in sentences:
        words = ["<s>", *sentence, "</s>"]
        for at in range(1, len(words)):
            if at >= len(history) and words[at - len(history) : at] == history:
                followers.append(words[at])
    shorter = witten_bell(sentences, history[1:], word) if history else 1 / (len(WORDS) + 2)
    types = len(set(followers))
    if not followers:
        return shorter
    return (followers.count(word) + types * shorter) / (len(followers) + types)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_is_a_distribution_after_every_history(
    model: Callable[[int], kenlm.Model], order: int
) -> None:
    estimated = model(order)
    assert estimated.order == order
    for length in range(4):
        for history in itertools.product(WORDS, repeat=length):
            total = sum(
                kenlm_probability(estimated, history, word) for word in (*WORDS, "</s>", "never")
            )
            assert total == pytest.approx(1, abs=1e-5)


def test_is_witten_bells_interpolation(
    model: Callable[[int], kenlm.Model], sentences: list[list[str]]
) -> None:
    estimated = model(3)
    for length in range(4):
        for history in itertools.product(WORDS, repeat=length):
            last_two = ["<s>", *history][-2:]
            for word in (*WORDS, "</s>", "<unk>"):
                expected = witten_bell(sentences, last_two, word)
                found = kenlm_probability(estimated, history, word)
                assert found == pytest.approx(expected, rel=1e-5)


def test_an_order_longer_than_the_sentences(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("one\ntwo\n")
    run("--order", 5, tmp_path / "text", tmp_path / "arpa")
    assert kenlm.Model(str(tmp_path / "arpa")).order == 5


def test_lexicon_spells_each_word(text: Path, tmp_path: Path) -> None:
    result = run("--lexicon", tmp_path / "lexicon", text, tmp_path / "arpa")
    lexicon = (tmp_path / "lexicon").read_text()
    assert lexicon == "one\to n e |\nthree\tt h r e e |\ntwo\tt w o |\n"
    assert "3 words" in result.stdout and "by Witten-Bell" in result.stdout


def test_runs_lmplz_where_there_is_one(text: Path, tmp_path: Path) -> None:
    lmplz = tmp_path / "lmplz"
    lmplz.write_text('#!/bin/sh\necho "$@" > "$7"\n')
    lmplz.chmod(0o755)
    result = run("--order", 4, text, tmp_path / "arpa", path=f"{tmp_path}:/bin")
    command = (tmp_path / "arpa").read_text().split()
    assert command[:2] == ["--order", "4"]
    assert command[command.index("--text") + 1] == str(text)
    assert f"by {lmplz}" in result.stdout
    lmplz.write_text("#!/bin/sh\nexit 3\n")
    assert "exit status 3" in run(text, tmp_path / "arpa", path=f"{tmp_path}:/bin", code=1).stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no words"),
        (" \n\n", "no words"),
        ("one <s> two\n", "<s> is a symbol of the model"),
        ("one|two\n", "'one|two' cannot be spelled"),
    ],
)
def test_text_without_a_model(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "text").write_text(content)
    arguments = ("--lexicon", tmp_path / "lexicon", tmp_path / "text", tmp_path / "arpa")
    result = run(*arguments, code=1)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


def test_bad_arguments(text: Path, tmp_path: Path) -> None:
    assert "No such file" in run(tmp_path / "none", tmp_path / "arpa", code=1).stderr
    assert "choose from 2, 3" in run("--order", 1, text, tmp_path / "arpa", code=2).stderr
