"""The kinds of cases that fairseq has for its own models: commands with all sorts of options.

They run in this process, by the `main` of each command.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fairseq import options
from fairseq.checkpoint_utils import load_model_ensemble, save_checkpoint
from fairseq.data import Dictionary
from fairseq_cli import generate, interactive, train
from torch import Tensor, nn

from sigma_fairseq.models.translation import TranslationModel
from sigma_fairseq.reparam import sigma_norms
from tests.conftest import USER_DIR
from tests.integration.training import COMMON, DECODER, ENCODER, parse

TRAINING = (
    *(*COMMON, *ENCODER, *DECODER, "--share-all-embeddings", "--task", "translation"),
    *("--arch", "transformer_reparam_deepnorm_6l", "--encoder-layers", "2"),
    *("--decoder-layers", "2", "--batch-size", "15", "--dropout", "0.1", "--reparam-qkv", "qk"),
    *("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
)
DECODING = ("--user-dir", USER_DIR, "--cpu", "--required-batch-size-multiple", "1")
EOS = 2


class Hypothesis(NamedTuple):
    """What fairseq-generate has found: mean and single log-probabilities to base 2, and words."""

    score: float
    scores: list[float]
    words: list[str]


Found = dict[int, list[Hypothesis]]
Generate = Callable[..., Found]


def run_training(data: Path, save_dir: Path, *args: str) -> None:
    """Runs fairseq-train as the first of its process."""
    for function in (save_checkpoint, train.should_stop_early):
        vars(function).clear()  # the best loss so far
    train.main(parse([str(data), "--save-dir", str(save_dir), *TRAINING, *args]))


def read_hypotheses(lines: str) -> Found:
    """By the number of the sentence, the best first."""
    found: Found = defaultdict(list)
    pairs = re.findall(r"^H-(\d+)\t(\S+)\t(.*)\n(?:D-.*\n)?P-\d+\t(.*)", lines, re.M)
    for number, score, words, scores in pairs:
        singles = [float(score) for score in scores.split()]
        found[int(number)].append(Hypothesis(float(score), singles, words.split()))
    return found


@pytest.fixture(scope="module")
def trained(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of three epochs, of which the last two are kept."""
    folder = tmp_path_factory.mktemp("trained")
    run_training(data_bin, folder, "--max-epoch", "3", "--keep-last-epochs", "2")
    return folder


@pytest.fixture(scope="module")
def last(trained: Path) -> str:
    """The last checkpoint."""
    return str(trained / "checkpoint_last.pt")


@pytest.fixture(scope="module")
def run(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Generate:
    """run(path, *options) → what fairseq-generate prints, read."""
    results = tmp_path_factory.mktemp("results")

    def run_generation(path: str, *args: str) -> Found:
        words = [str(data_bin), "--path", path, "--results-path", str(results), *DECODING, *args]
        parser = options.get_generation_parser()
        generate.main(options.parse_args_and_arch(parser, words))
        found = read_hypotheses((results / "generate-test.txt").read_text())
        assert len(found) == 20
        return found

    return run_generation


@pytest.fixture(scope="module")
def searched(run: Generate, last: str) -> Found:
    """Beam search by one model."""
    return run(last)


@pytest.fixture(scope="module")
def corpus(data_bin: Path) -> tuple[Dictionary, dict[int, list[str]], dict[int, list[str]]]:
    """The dictionary, and sources and targets of the test set."""
    dictionary = Dictionary.load(str(data_bin / "dict.en.txt"))
    folder = data_bin.parent
    sources, targets = (
        dict(enumerate(line.split() for line in (folder / f"test.{side}").read_text().splitlines()))
        for side in ("en", "de")
    )
    return dictionary, sources, targets


def load(*paths: str, **overrides: Any) -> list[Any]:
    """Models as they were trained, not made for generation."""
    models, _ = load_model_ensemble(list(paths), arg_overrides=overrides)
    return [model.eval() for model in models]


@torch.no_grad()
def log_probabilities(
    models: list[Any], dictionary: Dictionary, source: list[str], target: list[str]
) -> Tensor:
    """To base 2, of each word of a target and its end, without search, cache or fused layers."""
    read, written = (
        torch.tensor([[*map(dictionary.index, words), EOS]]) for words in (source, target)
    )
    previous = torch.cat([written[:, -1:], written[:, :-1]], dim=1)
    lengths = torch.tensor([read.shape[1]])
    logits = [model(read, lengths, previous)[0].double() for model in models]
    mean = torch.stack([each.softmax(-1) for each in logits]).mean(0)[0]
    return mean.gather(1, written.T).squeeze(1).log2()


def check_scores(models: list[Any], corpus: Any, found: Found) -> None:
    """Holds what was found against the models themselves."""
    dictionary, sources, _ = corpus
    for number, hypotheses in found.items():
        for score, scores, words in hypotheses:
            expected = log_probabilities(models, dictionary, sources[number], words).tolist()
            assert scores == pytest.approx(expected, abs=2e-3)
            assert score == pytest.approx(sum(expected) / len(expected), abs=2e-3)


def words_of(found: Found) -> dict[int, list[list[str]]]:
    return {key: [each.words for each in hypotheses] for key, hypotheses in found.items()}


def test_beam_search(last: str, searched: Found, corpus: Any) -> None:
    check_scores(load(last), corpus, searched)
    assert len({tuple(found[0].words) for found in searched.values()}) > 5


def test_n_best(run: Generate, last: str, searched: Found, corpus: Any) -> None:
    found = run(last, "--nbest", "5")
    check_scores(load(last), corpus, found)
    for number, hypotheses in found.items():
        assert hypotheses[0] == searched[number][0]
        scores = [each.score for each in hypotheses]
        assert len(scores) == 5 and scores == sorted(scores, reverse=True)


def test_an_ensemble_of_a_model_with_itself_is_the_model(
    run: Generate, last: str, searched: Found
) -> None:
    found = run(f"{last}:{last}")
    assert words_of(found) == words_of(searched)
    for number, hypotheses in found.items():
        assert hypotheses[0].scores == pytest.approx(searched[number][0].scores, abs=1e-3)


def test_an_ensemble_of_two_checkpoints_has_their_mean_probability(
    run: Generate, trained: Path, corpus: Any
) -> None:
    paths = [str(trained / f"checkpoint{epoch}.pt") for epoch in (2, 3)]
    check_scores(load(*paths), corpus, run(":".join(paths)))


def test_references_are_scored(run: Generate, last: str, corpus: Any) -> None:
    found = run(last, "--score-reference")
    check_scores(load(last), corpus, found)
    assert words_of(found) == {number: [words] for number, words in corpus[2].items()}


def test_a_prefix_is_kept(run: Generate, last: str, corpus: Any) -> None:
    found = run(last, "--prefix-size", "2")
    check_scores(load(last), corpus, found)
    for number, hypotheses in found.items():
        assert hypotheses[0].words[:2] == corpus[2][number][:2]


def test_constraints_are_met(
    data_bin: Path, last: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "input").write_text("a b c\th g\nd d e\tf\n")
    words = [str(data_bin), "--path", last, *DECODING, "--input", str(tmp_path / "input")]
    parser = options.get_interactive_generation_parser()
    interactive.main(options.parse_args_and_arch(parser, [*words, "--constraints"]))
    found = words_of(read_hypotheses(capsys.readouterr().out))
    assert {"h", "g"} <= set(found[0][0]) and "f" in found[1][0]


@pytest.mark.parametrize(
    "args",
    [
        ("--sampling", "--sampling-topk", "1"),
        ("--sampling", "--sampling-topp", "1e-6"),
        ("--diverse-beam-groups", "1", "--diverse-beam-strength", "9"),
    ],
    ids=lambda args: args[-2],
)
def test_a_choice_of_one_word_is_greedy_search(
    run: Generate, last: str, args: tuple[str, ...]
) -> None:
    found, greedy = (run(last, "--beam", "1", *more) for more in (args, ()))
    assert words_of(found) == words_of(greedy)


def test_siblings_without_a_penalty_are_beam_search(
    run: Generate, last: str, searched: Found
) -> None:
    assert words_of(run(last, "--diversity-rate", "0")) == words_of(searched)


def test_sampling_draws_by_the_seed(run: Generate, last: str, corpus: Any) -> None:
    sampling = ("--sampling", "--beam", "2", "--nbest", "2", "--seed")
    first, again, other = (run(last, *sampling, seed) for seed in ("1", "1", "2"))
    check_scores(load(last), corpus, first)
    assert first == again != other


def test_dropout_can_be_retained(run: Generate, last: str, searched: Found) -> None:
    first, again, other = (
        run(last, "--retain-dropout", "--seed", seed) for seed in ("1", "1", "2")
    )
    assert first == again
    assert all(found != searched for found in (first, other)) and first != other


def test_lengths_are_kept(run: Generate, last: str, corpus: Any) -> None:
    for number, hypotheses in run(last, "--match-source-len").items():
        # fairseq counts the end of the source, and not that of the hypothesis.
        assert len(hypotheses[0].words) == len(corpus[1][number]) + 1
    for hypotheses in run(last, "--min-len", "9", "--max-len-b", "11").values():
        assert 9 <= len(hypotheses[0].words) <= 11


def test_layers_can_be_left_out_at_generation(run: Generate, last: str, corpus: Any) -> None:
    overrides = {"encoder_layers_to_keep": "1", "decoder_layers_to_keep": "0"}
    found = run(last, "--model-overrides", str(overrides))
    (model,) = load(last)
    model.encoder.layers = nn.ModuleList([model.encoder.layers[1]])
    model.decoder.layers = nn.ModuleList([model.decoder.layers[0]])
    model.decoder.num_layers = 1
    check_scores([model], corpus, found)


def test_the_hub_interface_translates(last: str, data_bin: Path, searched: Found) -> None:
    hub = TranslationModel.from_pretrained(
        str(Path(last).parent), Path(last).name, str(data_bin), bpe=None, tokenizer=None
    )
    source = "a b c d"
    hypothesis = hub.generate(hub.encode(source), beam=5)[0]
    assert hub.translate(source) == hub.decode(hypothesis["tokens"])
    (model,) = load(last)
    dictionary = Dictionary.load(str(data_bin / "dict.en.txt"))
    words = hub.decode(hypothesis["tokens"]).split()
    expected = log_probabilities([model], dictionary, source.split(), words) * math.log(2)
    assert hypothesis["positional_scores"].tolist() == pytest.approx(expected.tolist(), abs=1e-3)


def average(paths: list[str], destination: Path) -> str:
    """The mean of the models of checkpoints, as fairseq's script of that name makes it."""
    states = [torch.load(path, weights_only=True) for path in paths]
    mean = dict(states[0])
    mean["model"] = {
        name: (sum(state["model"][name].double() for state in states) / len(states)).to(value.dtype)
        for name, value in states[0]["model"].items()
    }
    torch.save(mean, destination)
    return str(destination)


def test_the_average_of_a_checkpoint_with_itself_is_the_checkpoint(
    run: Generate, last: str, searched: Found, tmp_path: Path
) -> None:
    assert run(average([last, last], tmp_path / "mean.pt")) == searched


def test_averaged_weights_have_their_own_spectral_norm(trained: Path, tmp_path: Path) -> None:
    paths = [str(trained / f"checkpoint{epoch}.pt") for epoch in (2, 3)]
    (model,) = load(average(paths, tmp_path / "mean.pt"))
    for norm, stack in sigma_norms(model):
        sigma = torch.linalg.matrix_norm(torch.cat(stack), 2)
        torch.testing.assert_close(norm.sigma(*stack), sigma, rtol=1e-3, atol=0.0)


def state(path: Path) -> dict[str, Tensor]:
    model: dict[str, Tensor] = torch.load(path, weights_only=True)["model"]
    return model


def test_old_checkpoints_are_removed(trained: Path, data_bin: Path, tmp_path: Path) -> None:
    names = {path.name for path in trained.glob("*.pt")}
    assert names == {f"checkpoint{name}.pt" for name in ("2", "3", "_last", "_best")}
    keep = ("--save-interval-updates", "5", "--keep-interval-updates", "2")
    best = ("--keep-best-checkpoints", "1", "--no-epoch-checkpoints")
    run_training(data_bin, tmp_path, "--max-epoch", "2", *keep, *best)
    names = {path.name for path in tmp_path.glob("checkpoint_[0-9]_*.pt")}
    assert names == {"checkpoint_2_30.pt", "checkpoint_2_35.pt"}
    assert len(list(tmp_path.glob("checkpoint.best_loss_*.pt"))) == 1


def test_patience_ends_a_training_that_gets_no_better(data_bin: Path, tmp_path: Path) -> None:
    run_training(data_bin, tmp_path, "--lr", "0", "--patience", "1", "--max-epoch", "6")
    assert (tmp_path / "checkpoint2.pt").is_file()
    assert not (tmp_path / "checkpoint4.pt").is_file()


def test_finetuning_starts_anew_from_the_weights(
    data_bin: Path, trained: Path, tmp_path: Path
) -> None:
    """As --restore-file with every --reset- does, digit for digit, and not as resuming does."""
    start = str(trained / "checkpoint2.pt")
    reset = [f"--reset-{part}" for part in ("optimizer", "dataloader", "meters", "lr-scheduler")]
    ways = {
        "finetuned": ("--finetune-from-model", start, "--max-update", "3"),
        "reset": ("--restore-file", start, *reset, "--max-update", "3"),
        "resumed": ("--restore-file", start, "--max-update", "43"),
    }
    for way, args in ways.items():
        run_training(data_bin, tmp_path / way, *args)
    finetuned, anew, resumed = (state(tmp_path / way / "checkpoint_last.pt") for way in ways)
    for name, value in finetuned.items():
        assert torch.equal(value, anew[name]), name
    table = "decoder.embed_tokens.weight"
    for other in (state(Path(start)), resumed):
        assert not torch.equal(finetuned[table], other[table])


def test_a_moving_average_without_memory_is_the_model(data_bin: Path, tmp_path: Path) -> None:
    ema = ("--store-ema", "--ema-decay", "0", "--ema-fp32")
    run_training(data_bin, tmp_path, "--max-update", "4", *ema)
    saved = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    averaged = saved["extra_state"]["ema"]
    for name, value in saved["model"].items():
        if "version" not in name:  # which fairseq keeps as they were
            assert torch.equal(averaged[name], value), name


def test_sentences_that_are_too_long(data_bin: Path, tmp_path: Path) -> None:
    short = ("--max-target-positions", "5", "--max-epoch", "1")
    with pytest.raises(Exception, match="--skip-invalid-size-inputs-valid-test"):
        run_training(data_bin, tmp_path, *short)
    run_training(data_bin, tmp_path, *short, "--skip-invalid-size-inputs-valid-test")
    lines = (data_bin.parent / "train.de").read_text().splitlines()
    kept = sum(len(line.split()) < 5 for line in lines)
    saved = torch.load(tmp_path / "checkpoint1.pt", weights_only=True)
    assert saved["optimizer_history"][-1]["num_updates"] == math.ceil(kept / 15)
