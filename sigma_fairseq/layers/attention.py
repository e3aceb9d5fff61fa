"""Multi-head attention in one path, with a temperature and QK-norm."""

from typing import Any

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

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
        logits = (query * self.scale) @ key.mT  # (B, H, T, S)
        if mask is not None:
            logits = logits + mask
        weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        return F.dropout(weights.to(value.dtype), dropout) @ value, weights


class Attention(MultiheadAttention):
    """fairseq's multi-head attention, every forward of which goes through a `DotProduct`.

    Its parameters, their names and the cached state of incremental decoding are fairseq's.

    Args:
        embed_dim: width C of queries and output.
        num_heads: number of heads H.
        qk_norm: LayerNorm on each head's queries and keys before their product, one for the queries
            and one for the keys, shared by the heads (Dehghani et al., 2023, arXiv:2302.05442).
        temperature, temperature_from_update: see `DotProduct`.
        kwargs: as for fairseq's.

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
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dim, num_heads, **kwargs)
        if self.bias_k is not None or self.add_zero_attn or self.use_xformers:
            raise ValueError("Attention has no add_bias_kv, add_zero_attn or xformers_att_config")
        # The name by which --retain-dropout-modules knows it.
        self.dropout_module.module_name = MultiheadAttention.__name__
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.dot_product = DotProduct(self.head_dim, temperature, temperature_from_update)

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

        q = self.q_norm(self._split_heads(self.q_proj(query)))  # (B·beam, H, T, d)
        k, v, key_padding_mask = self._keys_and_values(
            key, value, key_padding_mask, incremental_state, static_kv
        )
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
        # rounds otherwise, and plain models are fairseq's to the last bit.
        context, weights = self.dot_product(q, k, v, mask, dropout, need_weights or static_kv)

        context = context.unflatten(2, (-1, time))  # (B, H, beam, T, d)
        output = self.out_proj(context.permute(3, 0, 2, 1, 4).reshape(time, batch, -1))
        if not need_weights:
            return output, None
        weights = weights.unflatten(2, (-1, time)).transpose(1, 2).flatten(0, 1)
        return output, weights.transpose(0, 1) if need_head_weights else weights.mean(dim=1)

    def _keys_and_values(
        self,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        incremental_state: IncrementalState | None,
        static_kv: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of this step and, kept in the state, of all before it, (B, H, S, d)."""
        saved = self._get_input_buffer(incremental_state)
        prev_key, prev_value = saved.get("prev_key"), saved.get("prev_value")
        if static_kv and prev_key is not None:
            k, v = prev_key, prev_value
        else:
            k = self.k_norm(self._split_heads(self.k_proj(key)))
            v = self._split_heads(self.v_proj(value))
            if prev_key is not None:
                k, v = torch.cat([prev_key, k], dim=2), torch.cat([prev_value, v], dim=2)
        if incremental_state is not None:
            key_padding_mask = self._append_prev_key_padding_mask(
                key_padding_mask, saved.get("prev_key_padding_mask"), len(k), k.shape[2], static_kv
            )
            saved = {"prev_key": k, "prev_value": v, "prev_key_padding_mask": key_padding_mask}
            self._set_input_buffer(incremental_state, saved)
        return k, v, key_padding_mask

    def _split_heads(self, x: Tensor) -> Tensor:
        """(T, B, C) → (B, H, T, d)."""
        # By way of fairseq's shape: the gradient arrives contiguous, so biases add it up as there.
        x = x.view(len(x), -1, self.head_dim)  # (T, B·H, d)
        return x.unflatten(1, (-1, self.num_heads)).permute(1, 2, 0, 3)
