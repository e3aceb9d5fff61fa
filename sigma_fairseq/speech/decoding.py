"""From a CTC model's outputs to labels: the best path, or a beam search with words and an LM."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel
from torch import Tensor

from sigma_fairseq.speech.dictionary import BLANK, WORD_BOUNDARY, LetterDictionary

#: Hypotheses so much less probable than the best one (natural logarithm) leave the beam.
BEAM_THRESHOLD = 50.0
#: What ending within a word costs (natural logarithm): more than anything else can.
UNFINISHED_WORD = -1e4
#: flashlight's decoders also know a criterion with scores of label pairs; CTC has none.
NO_TRANSITIONS: list[float] = []

DecoderChoice = ChoiceEnum(["greedy", "lexicon", "lexicon-free"])

Hypothesis = dict[str, Any]


@dataclass
class DecoderConfig(FairseqDataclass):
    """The options of `build_decoder` that fairseq-generate has not got already."""

    decoder: DecoderChoice = field(  # type: ignore[valid-type]
        default="greedy",
        metadata={
            "help": "greedy: the best label of each frame; lexicon: a beam search over sequences "
            "of the words of --lexicon; lexicon-free: one over sequences of letters. The searches "
            "keep --beam hypotheses (fairseq's 5 are few: 50 and more are usual) and print the "
            "--nbest best"
        },
    )
    lm: Optional[str] = field(  # noqa: UP045 (fairseq cannot parse X | None)
        default=None,
        metadata={
            "help": "KenLM for a beam search, binary or ARPA, over words (lexicon) or over letters "
            f"with {WORD_BOUNDARY} between words (lexicon-free); needs a --lm-weight, which "
            "multiplies its log10 probabilities"
        },
    )
    lexicon: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "for --decoder lexicon: a file with a word a line, a tab, and its letters "
            f"between spaces, the last of them {WORD_BOUNDARY}"
        },
    )
    word_score: float = field(
        default=0.0,
        metadata={
            "help": "for --decoder lexicon: added to the score for each word; above 0 favours "
            "more words"
        },
    )


def build_decoder(
    cfg: DecoderConfig, generation_cfg: Any, dictionary: LetterDictionary
) -> "GreedyDecoder":
    """The decoder that the options ask for.

    Args:
        cfg: the task's config.
        generation_cfg: fairseq's `GenerationConfig`.
        dictionary: of the labels.

    Raises:
        ValueError: options that contradict each other, a file that is missing or malformed, or a
            package that is missing, in one line.
    """
    _check_options(cfg, generation_cfg)
    if cfg.decoder == "greedy":
        return GreedyDecoder(dictionary)
    words = cfg.decoder == "lexicon"
    build_search = _lexicon_search if words else _lexicon_free_search
    try:
        search = build_search(cfg, generation_cfg, dictionary)
    except ImportError as error:
        raise ValueError(
            f"--decoder {cfg.decoder} needs {error.name}: pip install 'sigma-fairseq[speech]'"
        ) from error
    return BeamSearch(dictionary, search, generation_cfg.nbest, words)


def _check_options(cfg: DecoderConfig, generation_cfg: Any) -> None:
    decoder = cfg.decoder
    if generation_cfg.lm_path is not None:
        raise ValueError("--lm-path is for fairseq's language models; CTC takes a KenLM with --lm")
    if decoder == "greedy" and (cfg.lm or generation_cfg.nbest > 1):
        raise ValueError("--lm and --nbest need --decoder lexicon or lexicon-free, a beam search")
    if (decoder == "lexicon") != (cfg.lexicon is not None):
        raise ValueError("--decoder lexicon needs --lexicon FILE, and no other decoder takes one")
    if cfg.word_score and decoder != "lexicon":
        raise ValueError("--word-score needs --decoder lexicon")
    if (cfg.lm is None) != (generation_cfg.lm_weight == 0):
        raise ValueError("--lm FILE and --lm-weight, not 0, need each other; 2 is a usual weight")
    if generation_cfg.nbest > generation_cfg.beam:
        raise ValueError(f"--nbest {generation_cfg.nbest} exceeds --beam {generation_cfg.beam}")
    for option, path in (("--lm", cfg.lm), ("--lexicon", cfg.lexicon)):
        if path is not None and not Path(path).is_file():
            raise ValueError(f"{option} {path}: no such file")


def read_lexicon(path: Path, dictionary: LetterDictionary) -> list[tuple[str, tuple[str, ...]]]:
    """Words and their spellings, each pair once; a word may have several spellings.

    Raises:
        ValueError: it is empty or not UTF-8, or a line is not a word and letters of the dictionary
            that end in the word boundary.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--lexicon {path}: {error}") from error
    entries: dict[tuple[str, tuple[str, ...]], None] = {}
    for number, line in enumerate(lines, start=1):
        word, *spelling = line.split() or [""]
        letters = spelling[:-1]
        if not letters or spelling[-1] != WORD_BOUNDARY or WORD_BOUNDARY in letters:
            raise ValueError(
                f"--lexicon {path}, line {number}: {line!r} is not a word, a tab, and its letters "
                f"between spaces with {WORD_BOUNDARY} at the end"
            )
        unknown = sorted({letter for letter in letters if letter not in dictionary})
        if unknown:
            raise ValueError(
                f"--lexicon {path}, line {number}: not in the dictionary: {' '.join(unknown)}"
            )
        entries[word, tuple(spelling)] = None
    if not entries:
        raise ValueError(f"--lexicon {path}: it has no words")
    return list(entries)


@torch.no_grad()
def log_probabilities(
    models: Sequence[BaseFairseqModel], net_input: dict[str, Tensor | None]
) -> list[Tensor]:
    """What an ensemble says of each utterance: the log of the models' mean probabilities.

    Args:
        models: are put into evaluation mode.
        net_input: of a batch.

    Returns:
        A tensor an utterance: (its frames, labels), fp32, on the CPU, contiguous.
    """
    scores = []
    for model in models:
        model.eval()
        output = model(**net_input)
        scores.append(model.get_normalized_probs(output, log_probs=True))
    mean = torch.stack(scores).logsumexp(dim=0) - math.log(len(models))
    mean = mean.transpose(0, 1).contiguous().cpu()  # (B, T', labels)
    padding_mask = output["padding_mask"]
    if padding_mask is None:
        return list(mean)
    lengths = (~padding_mask).sum(dim=1).tolist()
    return [utterance[:length] for utterance, length in zip(mean, lengths, strict=True)]


def label_frames(path: Tensor, blank: int) -> Tensor:
    """Where the labels of a path begin: the frames (L,) left without repetitions and blanks.

    Args:
        path: (T,) with a label or blank a frame.
        blank: its number.
    """
    begins = torch.ones_like(path, dtype=torch.bool)
    begins[1:] = path[1:] != path[:-1]
    return (begins & (path != blank)).nonzero()[:, 0]


class GreedyDecoder:
    """The labels of the best path: the most probable label of each frame.

    Args:
        dictionary: of the labels.
    """

    def __init__(self, dictionary: LetterDictionary) -> None:
        self.blank = dictionary.index(BLANK)
        self.symbols_to_strip_from_output = {self.blank}

    def generate(
        self, models: Sequence[BaseFairseqModel], sample: dict[str, Any], **_: Any
    ) -> list[list[Hypothesis]]:
        """Hypotheses of each utterance of a batch, the best first, as fairseq-generate reads them.

        In one, `tokens` (L,) are labels without blanks, `score` is the natural logarithm of its
        probability with what the language model and the word score add, and `positional_scores`
        (L,) that of each label in the frame where it begins. Each utterance has at least one, whose
        labels may be none.
        """
        return [self.decode(each) for each in log_probabilities(models, sample["net_input"])]

    def decode(self, log_probs: Tensor) -> list[Hypothesis]:
        """Hypotheses of one utterance from log probabilities (T, labels); see `generate`.

        The score is that of the best path.
        """
        best, path = log_probs.max(dim=1)
        return [self.hypothesis(log_probs, path, label_frames(path, self.blank), best.sum().item())]

    @staticmethod
    def hypothesis(log_probs: Tensor, path: Tensor, frames: Tensor, score: float) -> Hypothesis:
        """A hypothesis whose labels are those of a path (T,) in `frames` (L,)."""
        return {
            "tokens": path[frames],
            "score": score,
            "positional_scores": log_probs[frames, path[frames]],
            "alignment": torch.empty(0),
            "attention": None,
        }


class BeamSearch(GreedyDecoder):
    """A beam search over letters, or over the words of a lexicon, with flashlight-text.

    The score of a hypothesis is log p(labels | audio) + lm_weight · log10 p(labels) +
    word_score · words. Its first term is the sum over alignments, as in the CTC loss, as far as
    the beam holds them; with a lexicon, boundaries more or less do not tell hypotheses apart.

    Args:
        dictionary: of the labels.
        search: flashlight's decoder.
        nbest: how many hypotheses of an utterance are wanted.
        words: whether labels must be whole words, which all end in the word boundary.
    """

    def __init__(
        self, dictionary: LetterDictionary, search: Any, nbest: int, words: bool = False
    ) -> None:
        super().__init__(dictionary)
        self.search = search
        self.nbest = nbest
        self.words = words
        # An utterance's last word has no boundary after it, but one frame more can be nothing else.
        self.end = torch.full((1, len(dictionary)), UNFINISHED_WORD)
        self.end[0, dictionary.index(WORD_BOUNDARY)] = 0

    def decode(self, log_probs: Tensor) -> list[Hypothesis]:
        """Hypotheses of one utterance from log probabilities (T, labels); see `generate`."""
        if self.words:
            log_probs = torch.cat([log_probs, self.end])
        results = self.search.decode(log_probs.data_ptr(), *log_probs.shape)
        hypotheses = []
        for result in results[: self.nbest]:
            # Without flashlight's beginning and end.
            path = torch.tensor(result.tokens[1:-1], dtype=torch.long)
            frames = label_frames(path, self.blank)
            if self.words:
                ends = (frame for frame, word in enumerate(result.words[1:-1]) if word >= 0)
                frames = frames[frames < max(ends, default=0)]
            hypotheses.append(self.hypothesis(log_probs, path, frames, result.score))
        # flashlight has none where the model said NaN.
        nothing = torch.empty(0, dtype=torch.long)
        return hypotheses or [self.hypothesis(log_probs, nothing, nothing, -math.inf)]


def _lexicon_search(cfg: Any, generation_cfg: Any, dictionary: LetterDictionary) -> Any:
    from flashlight.lib.text import decoder

    lexicon = read_lexicon(Path(cfg.lexicon), dictionary)
    words = list(dict.fromkeys(word for word, _ in lexicon))
    lm, scores, known = _read_lm(cfg.lm, words)
    if not any(known):
        raise ValueError(f"--lm {cfg.lm}: no word of {cfg.lexicon} is in it, such as {words[0]!r}")
    boundary = dictionary.index(WORD_BOUNDARY)
    trie = decoder.Trie(len(dictionary), boundary)
    numbers = {word: number for number, word in enumerate(words)}
    for word, spelling in lexicon:
        labels = [dictionary.index(letter) for letter in spelling]
        trie.insert(labels, numbers[word], scores[numbers[word]])
    trie.smear(decoder.SmearingMode.MAX)
    options = decoder.LexiconDecoderOptions(
        word_score=cfg.word_score,
        unk_score=-math.inf,
        **_search_options(generation_cfg, dictionary),
    )
    unknown, letter_lm = -1, False
    return decoder.LexiconDecoder(
        options, trie, lm, boundary, dictionary.index(BLANK), unknown, NO_TRANSITIONS, letter_lm
    )


def _lexicon_free_search(cfg: Any, generation_cfg: Any, dictionary: LetterDictionary) -> Any:
    from flashlight.lib.text import decoder

    lm, _, known = _read_lm(cfg.lm, dictionary.symbols)
    boundary = dictionary.index(WORD_BOUNDARY)
    if not known[boundary]:
        raise ValueError(
            f"--lm {cfg.lm}: {WORD_BOUNDARY} is not in it; lexicon-free decoding takes an "
            "LM over letters"
        )
    options = decoder.LexiconFreeDecoderOptions(**_search_options(generation_cfg, dictionary))
    return decoder.LexiconFreeDecoder(
        options, lm, boundary, dictionary.index(BLANK), NO_TRANSITIONS
    )


def _search_options(generation_cfg: Any, dictionary: LetterDictionary) -> dict[str, Any]:
    from flashlight.lib.text.decoder import CriterionType

    return {
        "beam_size": generation_cfg.beam,
        "beam_size_token": len(dictionary),
        "beam_threshold": BEAM_THRESHOLD,
        "lm_weight": generation_cfg.lm_weight,
        "sil_score": 0.0,
        "log_add": True,
        "criterion_type": CriterionType.CTC,
    }


def _read_lm(path: str | None, units: list[str]) -> tuple[Any, list[float], list[bool]]:
    """An LM over `units`, their log10 probabilities in front of a sentence, and which it knows."""
    from flashlight.lib.text.decoder import ZeroLM
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    if path is None:
        return ZeroLM(), [0.0] * len(units), [True] * len(units)
    try:
        lm = KenLM(path, Dictionary([*units, "<unk>"]))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise ValueError(f"--lm {path}: KenLM cannot read it: {reason}") from error
    start = lm.start(False)
    *scores, unknown = (lm.score(start, number)[1] for number in range(len(units) + 1))
    return lm, scores, [score != unknown for score in scores]
