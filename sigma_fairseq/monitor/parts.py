"""What of a model is monitored: attentions, weight matrices and embeddings, by their names."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from fairseq.modules import LearnedPositionalEmbedding, MultiheadAttention
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sigma_fairseq.reparam import SigmaNorm
from sigma_fairseq.reparam.sigma_norm import JointMember, original

#: Matrix kinds by the names of the linears in fairseq's layers.
KINDS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "output",
    "fc1": "fc1",
    "fc2": "fc2",
}

_PLACE = re.compile(r"(?:^|\.)(encoder|decoder)\.(?:layers\.(\d+))?")


def _place(name: str) -> tuple[str, int | None]:
    found = _PLACE.search(name)
    if found is None:
        return "", None
    return found[1], None if found[2] is None else int(found[2])


class Attention(NamedTuple):
    """An attention of a model.

    Attributes:
        name: of the module in the model.
        kind: "encoder self", "decoder self" or "encoder-decoder".
        layer: its number in the stack, from 0.
        module: fairseq's attention or ours, which extends it.
    """

    name: str
    kind: str
    layer: int | None
    module: MultiheadAttention


def attentions(model: nn.Module) -> Iterator[Attention]:
    """Every attention of a model, in the order of its modules."""
    for name, module in model.named_modules():
        if isinstance(module, MultiheadAttention):
            stack, layer = _place(name)
            cross = module.encoder_decoder_attention
            yield Attention(name, "encoder-decoder" if cross else f"{stack} self", layer, module)


class Matrix(NamedTuple):
    """A weight matrix of a model.

    Attributes:
        name: of the module in the model.
        kind: a value of `KINDS`, or "other".
        stack: "encoder", "decoder" or "".
        layer: its number in the stack, from 0; None outside the layers.
        module: a linear or convolution.
    """

    name: str
    kind: str
    stack: str
    layer: int | None
    module: Any

    def parameter(self) -> Tensor:
        """The parameter the optimizer holds: W under a reparameterization, g or v under others."""
        if not parametrize.is_parametrized(self.module, "weight"):
            return self.module.weight
        chain = self.module.parametrizations["weight"]
        # Weight normalization has two originals, of which the second is the matrix.
        weight: Tensor = chain.original if hasattr(chain, "original") else chain.original1
        return weight

    def sigma_norm(self) -> SigmaNorm | None:
        """The σReparam of this matrix, which it may share with others; None without."""
        if not parametrize.is_parametrized(self.module, "weight"):
            return None
        first = self.module.parametrizations["weight"][0]
        if isinstance(first, JointMember):
            return first.shared[0]
        return first if isinstance(first, SigmaNorm) else None

    def plain_weight(self) -> Tensor:
        """(rows, columns): W under σReparam, the effective weight under anything else."""
        if self.sigma_norm() is not None:
            return original(self.module, "weight").detach().flatten(1)
        if not parametrize.is_parametrized(self.module, "weight"):
            return self.module.weight.detach().flatten(1)
        chains = self.module.parametrizations
        training = chains.training
        chains.eval()  # torch's spectral_norm would take a step of its power iteration
        try:
            return self.module.weight.detach().flatten(1)
        finally:
            chains.train(training)


def matrices(model: nn.Module) -> Iterator[Matrix]:
    """Every linear's and convolution's weight matrix, in the order of the modules."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            kind = KINDS.get(name.rpartition(".")[2], "other")
            yield Matrix(name, kind, *_place(name), module)


def token_embeddings(model: nn.Module) -> Iterator[tuple[str, nn.Embedding]]:
    """Every embedding table of tokens, with its name; learned positions are not tokens."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and not isinstance(module, LearnedPositionalEmbedding):
            yield name, module
