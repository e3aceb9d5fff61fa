"""What the demos train, and on what."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: A rate that is hot for 18 + 18 layers, and one that DeepNorm bears.
HOT, MILD = 3e-3, 1e-3

#: LARS begins at this rate, at which 18 layers learn fast, if they learn.
LARS_RATE = 0.1


def _translation_methods() -> dict[str, dict[str, Any]]:
    """The slowest comes first, so that none waits for it."""
    return {
        # Small weights turn fast: from 0.1, the default, so few updates did not train it.
        "σReparam + DeepNorm": {
            "arch": "transformer_reparam_deepnorm_18l",
            "reparam-init-std": 0.02,
        },
        "DeepNorm": {"arch": "transformer_deepnorm_18l", "lr": [HOT, MILD]},
        "post-LN": {"arch": "transformer_postln_18l"},
    }


def _speech_methods() -> dict[str, dict[str, Any]]:
    return {
        # From 0.1, the default, rounding decided whether 600 updates were enough.
        "σReparam + post-LN": {
            "arch": "ctc_transformer_reparam_postln_36l",
            "reparam-init-std": 0.02,
        },
        "post-LN": {"arch": "ctc_transformer_postln_36l"},
        "pre-LN": {"arch": "ctc_transformer_preln_36l"},
    }


def _language_model_methods() -> dict[str, dict[str, Any]]:
    """Rates chosen in runs of 120 to 400 updates of seed 1, of which σReparam had the most."""
    return {
        "σReparam without LayerNorm": {
            "arch": "transformer_lm_reparam_noln_wiki103_16l",
            "reparam-init-std": 0.02,
            # With them, at rates 4 and 8, 400 updates ended 0.2 to 0.3 bits higher.
            "no-reparam-projections": True,
            "lr": 6,
        },
        "post-LN": {"arch": "transformer_lm_postln_wiki103_16l", "lr": 4},
        "pre-LN": {"arch": "transformer_lm_preln_wiki103_16l", "lr": 5},
    }


@dataclass(frozen=True)
class TranslationSettings:
    """Everything that figures of the translation demo depend on.

    Attributes:
        seed: of the corpus, of the initial weights and of the order of the batches.
        updates: of every training.
        sentences_per_update: batch size.
        methods: what is trained, as in a sweep's file; at `HOT` if it does not say otherwise.
        train_pairs: lines of the training part; an epoch of it ends with a checkpoint.
        valid_pairs: lines of the validation part.
        test_pairs: lines of the test part.
        vocabulary: pieces of the joint BPE.
        width: model dimension.
        feed_forward: inner dimension of the feed-forward blocks.
        heads: attention heads.
    """

    seed: int = 1
    updates: int = 500
    sentences_per_update: int = 32
    methods: Mapping[str, Any] = field(default_factory=_translation_methods)
    train_pairs: int = 6400
    valid_pairs: int = 500
    test_pairs: int = 500
    vocabulary: int = 200
    width: int = 64
    feed_forward: int = 128
    heads: int = 4


@dataclass(frozen=True)
class SpeechSettings:
    """Everything that figures of the speech demo depend on.

    Attributes:
        seed: of the corpus, of the initial weights and of the order of the batches.
        updates: of every training.
        seconds_per_update: of audio, at most, padding included.
        methods: what is trained, as in a sweep's file; at `LARS_RATE` if it does not say otherwise.
        train_utterances: of the training part; an epoch of it ends with a checkpoint.
        valid_utterances: of the validation part.
        test_utterances: of the test part.
        layers: of the encoder.
        width: model dimension.
        feed_forward: inner dimension of the feed-forward blocks.
        heads: attention heads.
    """

    seed: int = 1
    updates: int = 600
    seconds_per_update: int = 15
    methods: Mapping[str, Any] = field(default_factory=_speech_methods)
    train_utterances: int = 800
    valid_utterances: int = 100
    test_utterances: int = 100
    layers: int = 18
    width: int = 64
    feed_forward: int = 128
    heads: int = 4


@dataclass(frozen=True)
class LanguageModelSettings:
    """Everything that figures of the language-model demo depend on, but for the release of Python.

    Attributes:
        seed: of the split, of the initial weights and of the order of the batches.
        updates: of every training.
        tokens_per_update: pieces of text.
        block: pieces that a model sees at a time; half of it is the context when it is evaluated.
        methods: what is trained, as in a sweep's file, each with its rate; the first is sampled.
        held_out: characters of the validation part, and of the test part, at most.
        vocabulary: pieces of the BPE.
        cutoffs: where the second and the third band of adaptive input and softmax begin.
        layers: of the decoder.
        width: model dimension.
        feed_forward: inner dimension of the feed-forward blocks.
        heads: attention heads.
    """

    seed: int = 1
    updates: int = 800
    tokens_per_update: int = 512
    block: int = 128
    methods: Mapping[str, Any] = field(default_factory=_language_model_methods)
    held_out: int = 20_000
    vocabulary: int = 1000
    cutoffs: str = "200,600"
    layers: int = 8
    width: int = 64
    feed_forward: int = 256
    heads: int = 4
