"""Reads entropy and its bound from the attentions of a model while it runs forward."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma_fairseq.monitor.entropy import (
    BLOCK_ELEMENTS,
    attention_entropy,
    entropy_lower_bound,
    spectral_norm_from_above,
    visible_keys,
)
from sigma_fairseq.monitor.parts import Attention

#: The arguments of fairseq's attention, in order.
ARGUMENTS = (
    "query",
    "key",
    "value",
    "key_padding_mask",
    "incremental_state",
    "need_weights",
    "static_kv",
    "attn_mask",
)


class Product(NamedTuple):
    """What one attention computed its logits from.

    Attributes:
        attention: its number.
        query: (batch, heads, queries, head dimension).
        key: (batch, heads, keys, head dimension).
        mask: 4-D, broadcasts to (batch, heads, queries, keys); see `attention_entropy`.
        scale: of the logits.
        query_input: X of the queries, (batch, queries, channels).
        key_input: X of the keys, (batch, keys, channels).
        query_padding: (batch, queries), True at padding.
        key_padding: (batch, keys), True at padding.
    """

    attention: int
    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float
    query_input: Tensor
    key_input: Tensor
    query_padding: Tensor | None
    key_padding: Tensor | None


class AttentionSums:
    """Sums over queries of one forward pass, to be added to those of others.

    Attributes:
        count: valid queries, (A, heads).
        entropy: nats, (A, heads).
        bound: Theorem 3.1's bound, nats, (A, heads).
        uniform: log of the number of keys a query sees, (A, heads).
        least: least entropy of a query that sees several keys, (A, heads); inf where none does.
    """

    def __init__(self, attentions: int, heads: int, device: torch.device) -> None:
        def zeros() -> Tensor:
            return torch.zeros(attentions, heads, dtype=torch.float64, device=device)

        self.count, self.entropy, self.bound, self.uniform = zeros(), zeros(), zeros(), zeros()
        self.least = zeros() + torch.inf


class AttentionReader:
    """Reads some attentions of a model.

    Ours are read at their `dot_product`; for fairseq's own, queries and keys are projected again.
    Products of equal shape are kept and treated as one batch, as long as they are small, so that
    the number of operations of a small model does not grow with its depth.

    Args:
        attentions: what to read.
        heads: columns of the sums, the most heads of any attention.
    """

    def __init__(self, attentions: Sequence[Attention], heads: int) -> None:
        self._attentions = attentions
        self._heads = heads
        self._sums: AttentionSums | None = None
        self._norms: tuple[Tensor, Tensor] | None = None
        self._inputs: dict[int, tuple[Tensor, Tensor, Tensor | None, Tensor | None]] = {}
        self._decoder_padding: dict[str, Tensor | None] = {}
        self._waiting: dict[tuple[object, ...], list[Product]] = defaultdict(list)

    @contextmanager
    def reading(self, key_query: tuple[Tensor, Tensor]) -> Iterator[AttentionSums]:
        """Reads the forward passes inside; the sums are complete at the end.

        Args:
            key_query: spectral norms of `SpectralNorms.key_query`, for the bound.
        """
        for left_by_an_error in (self._waiting, self._inputs, self._decoder_padding):
            left_by_an_error.clear()
        device = key_query[0].device
        sums = self._sums = AttentionSums(len(self._attentions), self._heads, device)
        self._norms = key_query
        with ExitStack() as stack:
            for index, attention in enumerate(self._attentions):
                enter, take = partial(self._enter, index), partial(self._take, index)
                module = attention.module
                handle = module.register_forward_pre_hook(enter, with_kwargs=True)
                stack.callback(handle.remove)
                if hasattr(module, "dot_product"):
                    stack.callback(module.dot_product.register_forward_pre_hook(take).remove)
            yield sums
        for group in self._waiting.values():
            self._flush(group)

    def _enter(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        given = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
        query, key, padding = given["query"], given["key"], given.get("key_padding_mask")
        attention = self._attentions[index]
        layer = attention.name.rpartition(".")[0]
        if attention.kind == "encoder-decoder":
            query_padding = self._decoder_padding.get(layer)
        else:
            # With --cross-self-attention the keys begin with the encoder's.
            query_padding = None if padding is None else padding[:, -len(query) :]
            self._decoder_padding[layer] = query_padding
        self._inputs[index] = (
            query.detach().transpose(0, 1),
            key.detach().transpose(0, 1),
            None if query_padding is None else query_padding.bool(),
            None if padding is None else padding.bool(),
        )
        if not hasattr(module, "dot_product"):
            self._project(index, module, given.get("attn_mask"))

    @torch.no_grad()
    def _project(self, index: int, module: Any, mask: Tensor | None) -> None:
        """What fairseq's own attention does up to the product."""
        query, key, _, padding = self._inputs[index]

        def heads(x: Tensor, linear: nn.Module) -> Tensor:  # (batch, length, channels)
            # Not by a call of the linear, which with quantization noise would draw it.
            projected = F.linear(x, linear.weight, linear.bias)  # type: ignore[arg-type]
            return projected.unflatten(-1, (module.num_heads, -1)).transpose(1, 2)

        if padding is not None:
            hidden = torch.zeros_like(padding, dtype=torch.float32)
            hidden = hidden.masked_fill_(padding, -torch.inf)[:, None, None]  # (batch, 1, 1, keys)
            mask = hidden if mask is None else hidden + mask
        self._keep(
            index, heads(query, module.q_proj), heads(key, module.k_proj), mask, module.scaling
        )

    def _take(self, index: int, module: Any, args: tuple[Any, ...]) -> None:
        query, key, _, mask, *_ = args
        self._keep(index, query.detach(), key.detach(), mask, module.scale)

    def _keep(
        self, index: int, query: Tensor, key: Tensor, mask: Tensor | None, scale: float
    ) -> None:
        if mask is not None:
            mask = mask[(None,) * (4 - mask.dim())]
        product = Product(index, query, key, mask, scale, *self._inputs.pop(index))
        like = [
            x if x is None else (x.shape, x.dtype)
            for x in product
            if not isinstance(x, int | float)
        ]
        normalized = _has_qk_norm(self._attentions[index])
        group = self._waiting[scale, normalized, *like]
        group.append(product)
        elements = query[..., 0].numel() * key.shape[-2]
        if len(group) * elements > BLOCK_ELEMENTS:
            self._flush(group)

    def _flush(self, group: list[Product]) -> None:
        if group:
            with torch.autocast(group[0].query.device.type, enabled=False):
                self._add(group)
            group.clear()

    @torch.no_grad()
    def _add(self, group: list[Product]) -> None:
        """Adds to the sums what a group of products of equal shapes (n of them) comes to."""
        sums, norms = self._sums, self._norms
        assert sums is not None and norms is not None
        first = group[0]
        query = torch.stack([product.query for product in group])  # (n, batch, heads, queries, d)
        key = torch.stack([product.key for product in group])
        mask = _stacked([product.mask for product in group])  # (n, batch, heads, queries, keys)
        padding = _stacked([product.query_padding for product in group])  # (n, batch, queries)

        entropy = attention_entropy(query, key, mask, first.scale)  # (n, batch, heads, queries)
        seen = visible_keys(mask, key.shape[-2], entropy)
        valid = (seen > 0).expand(entropy.shape)
        if padding is not None:
            valid = valid & ~padding.unsqueeze(2)

        rows = [product.attention for product in group]
        heads = entropy.shape[2]
        if _has_qk_norm(self._attentions[rows[0]]):
            # The logits are products of normalized vectors, which no weight comes between:
            # the theorem with W_K = W_Q = 1 and those vectors as X.
            x = _input_norms([product.query for product in group], None)
            y = _input_norms([product.key for product in group], None)
            logit_bound = x * y
        else:
            y = _input_norms([p.key_input for p in group], [p.key_padding for p in group])
            if first.key_input.data_ptr() == first.query_input.data_ptr():
                x = y
            else:
                x = _input_norms([p.query_input for p in group], [p.query_padding for p in group])
            x, y = x.unsqueeze(-1), y.unsqueeze(-1)  # (n, batch, 1)
            product_norm, bias_norm = (norm[rows, :heads].unsqueeze(1) for norm in norms)
            # The queries' bias adds the same to the logits of every query: by the triangle
            # inequality. The keys' adds a constant to a row, which the softmax does not see.
            logit_bound = (product_norm * x + bias_norm) * y  # (n, batch, heads)
        bound = entropy_lower_bound(first.scale * logit_bound.unsqueeze(-1), seen)

        def total(values: Tensor) -> Tensor:
            return torch.where(valid, values, 0).sum((1, 3), dtype=torch.float64)

        sums.count[rows, :heads] += total(torch.ones_like(entropy))
        sums.entropy[rows, :heads] += total(entropy)
        sums.bound[rows, :heads] += total(bound.expand(entropy.shape))
        sums.uniform[rows, :heads] += total(seen.clamp(min=1).log().expand(entropy.shape))
        chosen = valid & (seen > 1)  # a query of one key is at 0 whatever the model does
        least = torch.where(chosen, entropy, torch.inf).amin((1, 3)).double()
        sums.least[rows, :heads] = torch.minimum(sums.least[rows, :heads], least)


def _has_qk_norm(attention: Attention) -> bool:
    return bool(getattr(attention.module, "qk_norm", False))


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """One tensor of them all, of size 1 in the new dimension where they are one and the same."""
    first = tensors[0]
    if first is None:
        return None
    if all(tensor is not None and tensor.data_ptr() == first.data_ptr() for tensor in tensors):
        return first.unsqueeze(0)
    return torch.stack([tensor for tensor in tensors if tensor is not None])


def _input_norms(inputs: Sequence[Tensor], paddings: Sequence[Tensor | None] | None) -> Tensor:
    """‖X‖₂ of every sequence: n tensors (..., length, channels) → (n, ...); padding left out."""
    x = _stacked(inputs)
    assert x is not None
    padding = None if paddings is None else _stacked(paddings)
    if padding is not None:
        x = x.masked_fill(padding.unsqueeze(-1), 0)
    return spectral_norm_from_above(x)
