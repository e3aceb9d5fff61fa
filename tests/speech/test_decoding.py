"""Decoders, held against enumerations of all paths through a few frames."""

import itertools
import math
import sys
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.dataclass.utils import gen_parser_from_dataclass
from torch import Tensor, nn

from sigma_fairseq.speech.decoding import DecoderConfig, build_decoder, log_probabilities
from sigma_fairseq.speech.dictionary import LetterDictionary

SYMBOLS = "_ab|"  # blank, two letters and the boundary, at their numbers
LEXICON = "a\ta |\nab\ta b |\nba\tb a |\nbb\tb b |\n"

# log10 p, n-gram, log10 of the back-off; not normalized, which nothing here needs.
WORD_LM = {
    ("<s>",): (-99, -0.3),
    ("</s>",): (-0.9, 0),
    ("<unk>",): (-3, 0),
    ("a",): (-0.8, -0.2),
    ("ab",): (-1.1, -0.4),
    ("ba",): (-0.6, 0),
    ("<s>", "ab"): (-0.2, 0),
    ("ab", "a"): (-0.3, 0),
    ("a", "</s>"): (-0.1, 0),
    ("ba", "ba"): (-1.7, 0),
}
LETTER_LM = {
    ("<s>",): (-99, -0.5),
    ("</s>",): (-0.7, 0),
    ("<unk>",): (-3, 0),
    ("a",): (-0.4, -0.1),
    ("b",): (-0.9, -0.2),
    ("|",): (-1.0, -0.3),
    ("<s>", "b"): (-0.1, 0),
    ("a", "|"): (-0.2, 0),
    ("b", "b"): (-1.5, 0),
    ("|", "</s>"): (-2.0, 0),
}


@pytest.fixture
def dictionary(tmp_path: Path) -> LetterDictionary:
    path = tmp_path / "dict.txt"
    path.write_text("a 1\nb 1\n| 1\n")
    return LetterDictionary.read(path)


def write_arpa(path: Path, lm: dict[tuple[str, ...], tuple[float, float]]) -> Path:
    """Writes a bigram model."""
    lines = ["\\data\\"]
    lines += [f"ngram {n}={sum(len(ngram) == n for ngram in lm)}" for n in (1, 2)]
    for n in (1, 2):
        lines += ["", f"\\{n}-grams:"]
        for ngram, (score, backoff) in lm.items():
            if len(ngram) == n:
                lines.append(f"{score}\t{' '.join(ngram)}" + (f"\t{backoff}" if n == 1 else ""))
    path.write_text("\n".join([*lines, "", "\\end\\", ""]))
    return path


def lm_score(lm: dict[tuple[str, ...], tuple[float, float]], units: tuple[str, ...]) -> float:
    """log10 p(units </s> | <s>) of a bigram model that backs off."""
    score, previous = 0.0, "<s>"
    for unit in (*units, "</s>"):
        unit = unit if (unit,) in lm else "<unk>"
        if (previous, unit) in lm:
            score += lm[previous, unit][0]
        else:
            score += lm[previous,][1] + lm[unit,][0]
        previous = unit
    return score


@pytest.fixture
def decoder(dictionary: LetterDictionary, tmp_path: Path) -> Callable[..., Any]:
    """decoder(command line, beam=, nbest=, lm_weight=, lm_path=) → a decoder."""
    (tmp_path / "lexicon").write_text(LEXICON)
    write_arpa(tmp_path / "words.arpa", WORD_LM)
    write_arpa(tmp_path / "letters.arpa", LETTER_LM)

    def build(command: str = "", **generation: Any) -> Any:
        generation = {"beam": 5, "nbest": 1, "lm_weight": 0.0, "lm_path": None, **generation}
        return build_decoder(
            parse(command.replace("@", f"{tmp_path}/")), SimpleNamespace(**generation), dictionary
        )

    return build


def parse(command: str) -> Namespace:
    parser = ArgumentParser(allow_abbrev=False)
    gen_parser_from_dataclass(parser, DecoderConfig())
    return parser.parse_args(command.split())


def utterance(frames: int, seed: int, labels: int = len(SYMBOLS)) -> Tensor:
    """Log probabilities (frames, labels) of which none is far from the others."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, labels, generator=generator).log_softmax(dim=1)


def paths(log_probs: Tensor) -> Iterator[tuple[str, float]]:
    """All paths, a symbol a frame, and their log probabilities."""
    rows = log_probs.tolist()
    for path in itertools.product(range(len(SYMBOLS)), repeat=len(rows)):
        score = sum(row[label] for row, label in zip(rows, path, strict=True))
        yield "".join(SYMBOLS[label] for label in path), score


def collapse(path: str) -> str:
    """The labels of a path."""
    return "".join(symbol for symbol, _ in itertools.groupby(path)).replace("_", "")


def summed(scores: dict[Any, list[float]]) -> dict[Any, float]:
    return {key: torch.tensor(each).double().logsumexp(0).item() for key, each in scores.items()}


def read(hypothesis: dict[str, Any]) -> str:
    return "".join(SYMBOLS[label] for label in hypothesis["tokens"].tolist())


class Recorded(nn.Module):
    """A model that says what it was told to, at the frames that an input has."""

    def __init__(self, log_probs: Tensor) -> None:
        super().__init__()
        self.log_probs = log_probs

    def forward(self, source: Tensor, padding_mask: Tensor | None) -> dict[str, Tensor | None]:
        assert not self.training
        return {"encoder_out": self.log_probs, "padding_mask": padding_mask}

    def get_normalized_probs(self, output: dict[str, Tensor], log_probs: bool) -> Tensor:
        assert log_probs
        return output["encoder_out"].log_softmax(dim=-1)


def batch(lengths: list[int]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Utterances, the model's output for them (T, B, labels), and its padding mask (B, T).

    In padding frames a letter is certain, so that decoding one would be seen.
    """
    utterances = [utterance(length, seed=length) for length in lengths]
    padded = torch.full((max(lengths), len(lengths), len(SYMBOLS)), -30.0)
    padded[:, :, SYMBOLS.index("b")] = 0
    for number, each in enumerate(utterances):
        padded[: len(each), number] = each
    return utterances, padded, torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_the_best_of_all_paths(decoder: Callable[..., Any], seed: int) -> None:
    log_probs = utterance(5, seed)
    best, score = max(paths(log_probs), key=lambda each: each[1])
    (hypothesis,) = decoder().decode(log_probs)
    assert read(hypothesis) == collapse(best)
    assert hypothesis["score"] == pytest.approx(score, abs=1e-5)


def test_greedy_labels_and_their_scores(decoder: Callable[..., Any]) -> None:
    path = "__aa_ab||_b"
    log_probs = torch.full((len(path), len(SYMBOLS)), -9.0)
    for frame, symbol in enumerate(path):
        log_probs[frame, SYMBOLS.index(symbol)] = -(frame + 1) / 100
    (hypothesis,) = decoder().decode(log_probs)
    assert read(hypothesis) == "aab|b"
    assert hypothesis["positional_scores"].tolist() == pytest.approx(
        [-0.03, -0.06, -0.07, -0.08, -0.11]
    )


@pytest.mark.parametrize(
    "command",
    [
        "",
        "--decoder lexicon-free",
        "--decoder lexicon --lexicon @lexicon",
    ],
)
def test_padding_is_not_decoded(decoder: Callable[..., Any], command: str) -> None:
    utterances, padded, padding_mask = batch([3, 7, 5])
    decoder = decoder(command)
    sample = {"net_input": {"source": padded, "padding_mask": padding_mask}}
    model = Recorded(padded).train()
    together = decoder.generate([model], sample, prefix_tokens=None, constraints=None)
    assert len(together) == 3
    for hypotheses, alone in zip(together, utterances, strict=True):
        (expected,) = decoder.decode(alone)
        assert hypotheses[0]["tokens"].tolist() == expected["tokens"].tolist()
        assert hypotheses[0]["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert len(hypotheses[0]["positional_scores"]) == len(hypotheses[0]["tokens"])


def test_an_ensemble_has_the_mean_probability() -> None:
    outputs = [torch.stack([utterance(4, seed), utterance(4, seed + 10)], 1) for seed in (0, 1, 2)]
    net_input = {"source": outputs[0], "padding_mask": None}
    found = log_probabilities([Recorded(each) for each in outputs], net_input)
    expected = sum(each.double().exp() for each in outputs) / 3
    for number in range(2):
        torch.testing.assert_close(found[number].double().exp(), expected[:, number])


@pytest.mark.parametrize("seed", range(3))
def test_lexicon_free_sums_over_all_alignments(decoder: Callable[..., Any], seed: int) -> None:
    log_probs = utterance(5, seed)
    scores = defaultdict(list)
    for path, score in paths(log_probs):
        # flashlight starts behind a boundary, which swallows another one directly after it.
        scores[collapse("|" + path)[1:]].append(score)
    expected = summed(scores)
    found = decoder("--decoder lexicon-free", beam=5000, nbest=5000).decode(log_probs)
    assert len(found) == len(expected)
    for hypothesis, score in zip(found, sorted(expected.values(), reverse=True), strict=True):
        assert hypothesis["score"] == pytest.approx(score, abs=1e-4)
    best = max(expected, key=lambda labels: expected[labels])
    assert read(found[0]).lstrip("|") == best.lstrip("|")


@pytest.mark.parametrize("seed", range(3))
def test_lexicon_free_with_an_lm_over_letters(decoder: Callable[..., Any], seed: int) -> None:
    log_probs = utterance(5, seed)
    scores = defaultdict(list)
    for path, score in paths(log_probs):
        scores[collapse("|" + path)[1:]].append(score)
    expected = {
        labels: score + 1.5 * lm_score(LETTER_LM, tuple(labels))
        for labels, score in summed(scores).items()
    }
    command = "--decoder lexicon-free --lm @letters.arpa"
    found = decoder(command, beam=5000, nbest=20, lm_weight=1.5).decode(log_probs)
    ranked = sorted(expected, key=lambda labels: -expected[labels])[:20]
    assert [each["score"] for each in found] == pytest.approx(
        [expected[labels] for labels in ranked], abs=1e-4
    )
    assert read(found[0]).lstrip("|") == ranked[0].lstrip("|")


def score_words(log_probs: Tensor) -> dict[tuple[str, ...], float]:
    """log p of each sequence of the lexicon's words, over all alignments and boundaries."""
    lexicon = {line.split()[0] for line in LEXICON.splitlines()}
    scores = defaultdict(list)
    for path, score in paths(log_probs):
        words = tuple(collapse(path).replace("|", " ").split())
        if lexicon.issuperset(words):
            scores[words].append(score)
    return summed(scores)


@pytest.mark.parametrize(
    ("lm", "lm_weight", "word_score"),
    [("", 0.0, 0.0), ("", 0.0, 0.7), ("--lm @words.arpa", 2.0, 0.0), ("--lm @words.arpa", 0.8, -1)],
)
@pytest.mark.parametrize("seed", range(2))
def test_lexicon_ranks_all_sequences_of_its_words(
    decoder: Callable[..., Any], lm: str, lm_weight: float, word_score: float, seed: int
) -> None:
    log_probs = utterance(6, seed)
    expected = {
        words: score + word_score * len(words) + lm_weight * lm_score(WORD_LM, words) * bool(lm)
        for words, score in score_words(log_probs).items()
    }
    command = f"--decoder lexicon --lexicon @lexicon {lm} --word-score {word_score}"
    found = decoder(command, beam=5000, nbest=100, lm_weight=lm_weight).decode(log_probs)
    ranked = sorted(expected, key=lambda words: -expected[words])
    assert len(found) == len(ranked) > 10
    assert [tuple(read(each).replace("|", " ").split()) for each in found] == ranked
    assert [each["score"] for each in found] == pytest.approx(
        [expected[words] for words in ranked], abs=1e-4
    )


def test_lexicon_has_no_other_words_and_the_same_each_time(decoder: Callable[..., Any]) -> None:
    lexicon = {line.split()[0] for line in LEXICON.splitlines()}
    command = "--decoder lexicon --lexicon @lexicon --lm @words.arpa"
    options = {"beam": 4, "nbest": 4, "lm_weight": 1.0}
    for seed in range(20):
        log_probs = 3 * utterance(30, seed)
        found = decoder(command, **options).decode(log_probs)
        for hypothesis in found:
            assert lexicon.issuperset(read(hypothesis).replace("|", " ").split())
        scores = [each["score"] for each in found]
        assert scores == sorted(scores, reverse=True)
        again = decoder(command, **options).decode(log_probs)
        assert [(read(each), each["score"]) for each in again] == [
            (read(each), each["score"]) for each in found
        ]


def test_an_unfinished_word_costs_that_word_alone(decoder: Callable[..., Any]) -> None:
    path = "ab|_b"  # there is no word b
    log_probs = torch.full((len(path), len(SYMBOLS)), -200.0)
    for frame, symbol in enumerate(path):
        log_probs[frame, SYMBOLS.index(symbol)] = 0
    (hypothesis,) = decoder("--decoder lexicon --lexicon @lexicon", beam=1).decode(log_probs)
    assert read(hypothesis) == "ab"


def test_a_lexicon_line_twice_changes_nothing(decoder: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "twice").write_text(LEXICON + LEXICON)
    once, twice = (
        decoder(f"--decoder lexicon --lexicon @{name}", beam=1000, nbest=30).decode(utterance(5, 0))
        for name in ("lexicon", "twice")
    )
    assert [each["score"] for each in once] == [each["score"] for each in twice]


@pytest.mark.parametrize(
    "command",
    [
        "",
        "--decoder lexicon-free",
        "--decoder lexicon --lexicon @lexicon",
    ],
)
@pytest.mark.parametrize(
    "log_probs", [utterance(6, 0)[:, :1] * 0 - 9, torch.full((6, 1), math.nan)]
)
def test_every_utterance_has_a_hypothesis(
    decoder: Callable[..., Any], command: str, log_probs: Tensor
) -> None:
    """Of silence and of a model that diverged."""
    log_probs = log_probs.repeat(1, len(SYMBOLS))
    log_probs[:, 0] += 9
    sample = {"net_input": {"source": log_probs, "padding_mask": None}}
    model = Recorded(log_probs[:, None])
    ((hypothesis, *_),) = decoder(command).generate([model], sample)
    assert hypothesis["tokens"].tolist() == []
    assert hypothesis["positional_scores"].tolist() == []


@pytest.mark.parametrize(
    ("command", "generation", "message"),
    [
        ("", {"nbest": 2}, "--lm and --nbest need --decoder lexicon or lexicon-free"),
        ("--lm @words.arpa", {"lm_weight": 1.0}, "--lm and --nbest need"),
        ("--lexicon @lexicon", {}, "no other decoder takes one"),
        ("--decoder lexicon", {}, "--decoder lexicon needs --lexicon"),
        ("--word-score 1", {}, "--word-score needs --decoder lexicon"),
        ("--decoder lexicon-free --lm @letters.arpa", {}, "--lm-weight"),
        ("--decoder lexicon-free", {"lm_weight": 1.0}, "--lm FILE and --lm-weight"),
        ("--decoder lexicon-free", {"nbest": 6}, "--nbest 6 exceeds --beam 5"),
        ("", {"lm_path": "lm.pt"}, "--lm-path is for fairseq's"),
        ("--decoder lexicon-free --lm @none", {"lm_weight": 1.0}, "none: no such file"),
        ("--decoder lexicon-free --lm @lexicon", {"lm_weight": 1.0}, "KenLM cannot read it"),
        ("--decoder lexicon-free --lm @words.arpa", {"lm_weight": 1.0}, "| is not in it"),
        ("--decoder lexicon --lexicon @none", {}, "none: no such file"),
        ("--decoder lexicon --lexicon @upper --lm @words.arpa", {"lm_weight": 1.0}, "such as 'AB'"),
        ("--decoder lexicon --lexicon @empty", {}, "no words"),
        ("--decoder lexicon --lexicon @latin1", {}, "codec can't decode"),
        ("--decoder lexicon --lexicon @blank", {}, "line 2: ''"),
        ("--decoder lexicon --lexicon @plain", {}, "line 1: 'ab\\ta b'"),
        ("--decoder lexicon --lexicon @inside", {}, "line 1: 'ab\\ta | b |'"),
        ("--decoder lexicon --lexicon @other", {}, "line 2: not in the dictionary: c d"),
    ],
)
def test_bad_options_are_one_line(
    decoder: Callable[..., Any],
    tmp_path: Path,
    command: str,
    generation: dict[str, Any],
    message: str,
) -> None:
    for name, content in {
        "upper": "AB\ta b |\n",
        "empty": "",
        "blank": "a\ta |\n\n",
        "plain": "ab\ta b\n",
        "inside": "ab\ta | b |\n",
        "other": "a\ta |\ncad\tc a d |\n",
    }.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "latin1").write_bytes("é\té |\n".encode("latin-1"))
    with pytest.raises(ValueError) as caught:
        decoder(command, **generation)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_beam_search_without_flashlight(
    decoder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
    with pytest.raises(ValueError, match=r"needs flashlight.*sigma-fairseq\[speech\]"):
        decoder("--decoder lexicon-free")
    decoder("")
