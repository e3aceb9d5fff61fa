"""Multi-head attention in one path, with a temperature and QK-norm."""

from typing import Any

import torch
import torch.nn.functional as F
from fairseq.modules import LayerNorm, MultiheadAttention
from torch import Tensor, nn

from sigma_fairseq.reparam import Pack

#: fairseq's: by module, the tensors it keeps from one step of decoding to the next.
IncrementalState = dict[str, dict[str, Tensor | None]]


class DotProduct(nn.Module):
    """softmax(scale · QKᵀ + mask) V for each head; a module so that forward hooks see Q, K and V.

    Args:
        head_dim: width d of a head.
        temperature: what the logits are divided by (Appendix B).
        from_update: update from which on they are.

    Attributes:
        scale: factor of the logits, 1/√d over the temperature that holds at the present update.
    """

    def __init__(self, head_dim: int, temperature: float = 1.0, from_update: int = 0) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.temperature = temperature
        self.from_update = from_update
        self.set_num_updates(0)

    def set_num_updates(self, num_updates: int) -> None:
        """The update that comes next; fairseq tells every module that has this method."""
        temperature = self.temperature if num_updates >= self.from_update else 1.0
        self.scale = self.head_dim**-0.5 / temperature

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout: float,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends.

        Args:
            query: (B, H, T, d).
            key, value: (B, H, S, d).
            mask: added to the logits, broadcastable to (B, H, T, S); −inf hides a key.
            dropout: probability of dropping an attention weight.
            need_weights: forms and returns the (T, S) matrices, which is not done otherwise.

        Returns:
            The context, (B, H, T, d), and the weights before dropout, (B, H, T, S), in fp32 or
            wider; None if not needed.
        """
        if not need_weights:
            context = F.scaled_dot_product_attention(
                query, key, value, mask, dropout, scale=self.scale
            )
            return context, None
        batch, heads, time, width = query.shape
        query, key = (query * self.scale).reshape(-1, time, width), key.flatten(0, 1)
        logits = torch.bmm(query, key.mT).view(batch, heads, time, -1)
        if mask is not None:
            logits = logits + mask
        weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        kept = F.dropout(weights.to(value.dtype), dropout)
        context = torch.bmm(kept.flatten(0, 1), value.flatten(0, 1))
        return context.view(batch, heads, time, -1), weights


class Attention(MultiheadAttention):
    """fairseq's multi-head attention, every forward of which goes through a `DotProduct`.

    Its parameters, their names and the cached state of incremental decoding are fairseq's.

    Args:
        embed_dim: width C of queries and output.
        num_heads: number of heads H.
        qk_norm: LayerNorm on each head's queries and keys before their product, one for the queries
            and one for the keys, shared by the heads (Dehghani et al., 2023, arXiv:2302.05442).
        temperature, temperature_from_update: see `DotProduct`.
        fast: projections of one input are one matrix multiplication, and PyTorch's fused attention
            serves encoder-decoder attention too; otherwise a plain model is fairseq's to the last
            bit.
        kwargs: as for fairseq's.

    Attributes:
        packs: the projections, those of one input together, and the output projection.

    Raises:
        ValueError: an option of fairseq's class that this one does not have.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        qk_norm: bool = False,
        temperature: float = 1.0,
        temperature_from_update: int = 0,
        fast: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dim, num_heads, **kwargs)
        if self.bias_k is not None or self.add_zero_attn or self.use_xformers:
            raise ValueError("Attention has no add_bias_kv, add_zero_attn or xformers_att_config")
        # The name by which --retain-dropout-modules knows it.
        self.dropout_module.module_name = MultiheadAttention.__name__
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm, self.k_norm = LayerNorm(self.head_dim), LayerNorm(self.head_dim)
        self.dot_product = DotProduct(self.head_dim, temperature, temperature_from_update)
        self.fast = fast
        joined = ("q_proj", "k_proj", "v_proj")
        if self.self_attention:
            inputs = [Pack(self, *joined)]
        elif self.kdim == self.vdim:
            inputs = [Pack(self, "q_proj"), Pack(self, "k_proj", "v_proj")]
        else:
            inputs = [Pack(self, name) for name in joined]
        self.packs = (*inputs, Pack(self, "out_proj"))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends.

        Args:
            query: (T, B, C). In beam search B may be a multiple of that of key and value.
            key, value: (S, B, kdim) and (S, B, vdim).
            key_padding_mask: (B, S), nonzero at padding.
            incremental_state: where keys and values of earlier steps are kept.
            need_weights: returns the weights too.
            static_kv: all keys and values are there from the first step (encoder-decoder).
            attn_mask: (T, S), added to the logits.
            need_head_weights: returns the weights of each head instead of their mean.

        Returns:
            The output, (T, B, C), and the weights, (B, T, S) or (H, B, T, S); None if not needed.
        """
        time, batch, _ = query.shape
        if self.encoder_decoder_attention and self.beam_size > 1 and key.shape[1] == batch:
            # One of each sentence's equal copies is enough for all its hypotheses.
            key, value = key[:, :: self.beam_size], value[:, :: self.beam_size]
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask[:: self.beam_size]

        q, *kv = self._heads(self.packs[0], query, key, value)  # (B·beam, H, T, d)
        if self.qk_norm:
            q = self.q_norm(q)
        k, v, key_padding_mask = self._keys_and_values(
            key, value, kv, key_padding_mask, incremental_state, static_kv
        )
        beam = batch // len(k)
        if beam > 1:
            q = q.unflatten(0, (len(k), -1)).transpose(1, 2).flatten(2, 3)  # (B, H, beam·T, d)
        mask = attn_mask
        if key_padding_mask is not None:
            hidden = key_padding_mask[:, None, None].to(torch.bool)  # (B, 1, 1, S)
            blank = q.new_zeros(()) if attn_mask is None else attn_mask
            mask = blank.masked_fill(hidden, float("-inf"))  # (B, 1, 1 or T, S)
        drops = self.training or self.dropout_module.apply_during_inference
        dropout = self.dropout_module.p if drops else 0.0
        need_weights = need_weights or need_head_weights
        # fairseq forms the weights of encoder-decoder attention, needed or not: the fused kernel
        # rounds otherwise. For a query at a time, on the CPU, it is also the slower one.
        form = static_kv if not self.fast else incremental_state is not None and q.is_cpu
        context, weights = self.dot_product(q, k, v, mask, dropout, need_weights or form)

        if beam > 1:
            context = context.unflatten(2, (-1, time)).transpose(1, 2).flatten(0, 1)
        # (B·beam, H, T, d)
        output = self.out_proj(context.permute(2, 0, 1, 3).reshape(time, batch, -1))
        if not need_weights:
            return output, None
        if beam > 1:
            weights = weights.unflatten(2, (-1, time)).transpose(1, 2).flatten(0, 1)
        return output, weights.transpose(0, 1) if need_head_weights else weights.mean(dim=1)

    def _keys_and_values(
        self,
        key: Tensor,
        value: Tensor,
        projected: list[Tensor],
        key_padding_mask: Tensor | None,
        incremental_state: IncrementalState | None,
        static_kv: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of this step and, kept in the state, of all before it, (B, H, S, d).

        `projected` has those of this step where they came with the queries.
        """
        saved = self._get_input_buffer(incremental_state)
        prev_key, prev_value = saved.get("prev_key"), saved.get("prev_value")
        if static_kv and prev_key is not None:
            k, v = prev_key, prev_value
        else:
            inputs = [key, value]
            for pack in self.packs[1:-1]:
                # Those that decoding keeps are read at each of its steps, fastest from by itself.
                joined = incremental_state is None
                projected += self._heads(pack, *inputs[len(projected) :], joined=joined)
            k, v = projected
            if self.qk_norm:
                k = self.k_norm(k)
            if prev_key is not None:
                k, v = torch.cat([prev_key, k], dim=2), torch.cat([prev_value, v], dim=2)
        if incremental_state is not None:
            key_padding_mask = self._append_prev_key_padding_mask(
                key_padding_mask, saved.get("prev_key_padding_mask"), len(k), k.shape[2], static_kv
            )
            saved = {"prev_key": k, "prev_value": v, "prev_key_padding_mask": key_padding_mask}
            self._set_input_buffer(incremental_state, saved)
        return k, v, key_padding_mask

    def _heads(self, pack: Pack, *inputs: Tensor, joined: bool = True) -> list[Tensor]:
        """Each projection of a pack of the input that has its place, (T, B, C) → (B, H, T, d)."""
        x, size = inputs[0], len(pack.names)
        if joined and self.fast and size > 1 and all(other is x for other in inputs[1:size]):
            packed = F.linear(x, pack.weight(), pack.bias())
            heads = packed.view(*x.shape[:2], size, self.num_heads, self.head_dim)
            return list(heads.permute(2, 1, 3, 0, 4).unbind())
        return [self._split_heads(f(x)) for f, x in zip(pack.linears, inputs, strict=False)]

    def _split_heads(self, x: Tensor) -> Tensor:
        """(T, B, C) → (B, H, T, d)."""
        time, batch, _ = x.shape
        # By way of fairseq's shape: the gradient arrives contiguous, so biases add it up as there.
        x = x.view(time, batch * self.num_heads, self.head_dim)
        return x.view(time, batch, self.num_heads, self.head_dim).permute(1, 2, 0, 3)
