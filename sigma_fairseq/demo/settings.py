"""What the demo trains, and on what."""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple


class Model(NamedTuple):
    """What can be trained.

    Attributes:
        name: in progress and table.
        architecture: fairseq's `--arch`.
        options: of the architecture, where its defaults are not what is wanted.
    """

    name: str
    architecture: str
    options: tuple[str, ...] = ()


class Contender(NamedTuple):
    """One model at one learning rate, which is the same from the first update to the last."""

    model: Model
    learning_rate: float

    def __str__(self) -> str:
        return f"{self.model.name} at {self.learning_rate:g}"

    @property
    def folder_name(self) -> str:
        return f"{self.model.architecture}-lr{self.learning_rate}"


REPARAM = Model(
    "σReparam + DeepNorm",
    "transformer_reparam_deepnorm_18l",
    # Small weights turn fast: from 0.1, the default, so few updates did not train it.
    ("--reparam-init-std", "0.02"),
)
DEEPNORM = Model("DeepNorm", "transformer_deepnorm_18l")
POST_LN = Model("post-LN", "transformer_postln_18l")

#: All three at a rate that is hot for 18 + 18 layers, and DeepNorm at one it bears. The slowest
#: comes first, so that none waits for it.
CONTENDERS = (
    Contender(REPARAM, 3e-3),
    Contender(DEEPNORM, 3e-3),
    Contender(POST_LN, 3e-3),
    Contender(DEEPNORM, 1e-3),
)


def every_model_at(learning_rates: list[float]) -> tuple[Contender, ...]:
    """The three models at each of these learning rates."""
    pairs = product(dict.fromkeys(learning_rates), (REPARAM, DEEPNORM, POST_LN))
    return tuple(Contender(model, rate) for rate, model in pairs)


@dataclass(frozen=True)
class Settings:
    """Everything that figures depend on.

    Attributes:
        seed: of the corpus, of the initial weights and of the order of the batches.
        updates: of every training.
        sentences_per_update: batch size.
        contenders: what is trained.
        train_pairs: lines of the training part; an epoch of it ends with a checkpoint.
        valid_pairs: lines of the validation part.
        test_pairs: lines of the test part.
        vocabulary: pieces of the joint BPE.
        width: model dimension.
        feed_forward: inner dimension of the feed-forward blocks.
        heads: attention heads.
    """

    seed: int = 1
    updates: int = 600
    sentences_per_update: int = 32
    contenders: tuple[Contender, ...] = CONTENDERS
    train_pairs: int = 6400
    valid_pairs: int = 500
    test_pairs: int = 500
    vocabulary: int = 200
    width: int = 64
    feed_forward: int = 128
    heads: int = 4
