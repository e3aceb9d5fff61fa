"""Our attention against one in float64 written out, and against fairseq's."""

import copy
from typing import Any

import pytest
import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from sigma_fairseq.layers.attention import Attention, DotProduct
from sigma_fairseq.reparam import convert

T, S, B, H, C = 5, 7, 3, 2, 8


def attention(**options: Any) -> Attention:
    """An attention of which every parameter matters."""
    torch.manual_seed(0)
    module = Attention(C, H, **options)
    for name, parameter in module.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(parameter, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return module.eval()


def masks(padding: bool, causal: bool, keys: int) -> dict[str, Tensor | None]:
    """Some keys of two sentences hidden, and the keys after query + keys − T; the first never."""
    padded = torch.zeros(B, keys, dtype=torch.bool)
    padded[0, 2:4] = padded[1, -1] = True
    future = torch.full((T, keys), float("-inf")).triu(1 + keys - T)
    return {
        "key_padding_mask": padded if padding else None,
        "attn_mask": future if causal else None,
    }


def affine_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    std = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return centred / std * norm.weight + norm.bias


def written_out(
    module: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Output (T, B, C) and weights (H, B, T, S): one sentence and one head after the other."""
    d = C // H
    outputs, weights = [], []
    for b in range(query.shape[1]):
        contexts = []
        for h in range(H):
            rows = slice(h * d, (h + 1) * d)
            q, k, v = (
                x[:, b] @ linear.weight[rows].T + linear.bias[rows]
                for x, linear in (
                    (query, module.q_proj),
                    (key, module.k_proj),
                    (value, module.v_proj),
                )
            )
            if module.qk_norm:
                q, k = affine_norm(q, module.q_norm), affine_norm(k, module.k_norm)
            e = (q @ k.T / (d**0.5 * temperature)).exp()
            if attn_mask is not None:
                e = e * attn_mask.exp()
            if key_padding_mask is not None:
                e = e * ~key_padding_mask[b]
            weights.append(e / e.sum(-1, keepdim=True))
            contexts.append(weights[-1] @ v)
        outputs.append(torch.cat(contexts, -1) @ module.out_proj.weight.T + module.out_proj.bias)
    stacked = torch.stack(weights).unflatten(0, (-1, H)).transpose(0, 1)
    return torch.stack(outputs, 1), stacked


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"temperature": 0.4}], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padding", [False, True])
def test_output_weights_and_gradients(
    padding: bool, causal: bool, options: dict[str, Any], need_weights: bool
) -> None:
    module = attention(**options).double()
    twin = copy.deepcopy(module)
    inputs = [torch.randn(n, B, C, dtype=torch.float64, requires_grad=True) for n in (T, S, S)]
    twin_inputs = [x.detach().clone().requires_grad_() for x in inputs]
    hidden = masks(padding, causal, S)
    output, weights = module(*inputs, **hidden, need_weights=need_weights)
    temperature = options.get("temperature", 1.0)
    wanted, wanted_weights = written_out(twin, *twin_inputs, **hidden, temperature=temperature)
    torch.testing.assert_close(output, wanted)
    if need_weights:
        torch.testing.assert_close(weights, wanted_weights.mean(0))
    else:
        assert weights is None
    for x in (output, wanted):
        (x * torch.arange(C)).square().sum().backward()
    for x, y in zip(
        [*inputs, *module.parameters()], [*twin_inputs, *twin.parameters()], strict=True
    ):
        torch.testing.assert_close(x.grad, y.grad)


def test_weights_of_each_head() -> None:
    module, x = attention(), torch.randn(T, B, C)
    hidden = masks(True, True, T)
    weights = module(x, x, x, **hidden, need_weights=False, need_head_weights=True)[1]
    torch.testing.assert_close(weights, written_out(module, x, x, x, **hidden)[1])


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_drops_weights_and_keeps_their_mean(need_weights: bool) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(B, H, T, 6), torch.randn(B, H, 6, 6)
    value = torch.eye(6).expand(B, H, 6, 6)  # the context is then the weights
    plain = DotProduct(6)(query, key, value, None, 0.0, need_weights)[0]
    dropped = DotProduct(6)(query, key, value, None, 0.5, need_weights)[0]
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])
    assert 0.3 < kept.float().mean().item() < 0.7


def test_dropout_is_for_training_unless_retained() -> None:
    module, x = attention(dropout=0.5), torch.randn(T, B, C)
    torch.testing.assert_close(module(x, x, x)[0], attention()(x, x, x)[0])
    evaluated = module(x, x, x)[0]
    assert not torch.equal(module.train()(x, x, x)[0], evaluated)
    module.eval().dropout_module.make_generation_fast_(
        "attention", retain_dropout=True, retain_dropout_modules=["MultiheadAttention"]
    )
    assert not torch.equal(module(x, x, x)[0], evaluated)


@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True}, {"temperature": 0.1}, {"reparam": "sigma"}], ids=str
)
def test_step_by_step_equals_the_whole(options: dict[str, Any]) -> None:
    reparam = options.get("reparam", "none")
    own = {key: value for key, value in options.items() if key != "reparam"}
    module = convert(attention(self_attention=True, **own), reparam=reparam)
    x = torch.randn(T, B, C)
    hidden = masks(True, True, T)
    whole, _ = module(x, x, x, **hidden, need_weights=False)
    state: dict[str, Any] = {}
    for step in range(T):
        one = x[step : step + 1]
        padded = hidden["key_padding_mask"][:, step : step + 1]  # type: ignore[index]
        output, _ = module(one, one, one, key_padding_mask=padded, incremental_state=state)
        torch.testing.assert_close(output[0], whole[step])


@pytest.mark.parametrize("beam_size", [1, 2])
@pytest.mark.parametrize(("cross", "padding"), [(False, False), (True, False), (True, True)])
def test_beams_are_reordered_and_shared_as_in_fairseq(
    cross: bool, padding: bool, beam_size: int
) -> None:
    """`set_beam_size` makes encoder-decoder attention keep one copy of the keys a sentence."""
    kind = {"encoder_decoder_attention": True} if cross else {"self_attention": True}
    ours = attention(**kind)
    theirs = MultiheadAttention(C, H, **kind).eval()
    theirs.load_state_dict(ours.state_dict())
    beams = torch.arange(B).repeat_interleave(2)
    encoded, padded = torch.randn(S, B, C)[:, beams], masks(True, False, S)["key_padding_mask"]
    padded = padded[beams] if padding else None  # type: ignore[index]
    states: list[dict[str, Any]] = [{}, {}]
    for order in ([0, 1, 2, 3, 4, 5], [1, 1, 2, 3, 5, 4], [0, 0, 4, 5]):  # one sentence ends
        moved = torch.tensor(order)
        x, encoded = torch.randn(1, len(order), C), encoded[:, moved]
        padded = padded if padded is None else padded[moved]
        outputs = []
        for module, state in zip((ours, theirs), states, strict=True):
            module.set_beam_size(beam_size)
            module.reorder_incremental_state(state, moved)
            if cross:
                keys = {"key": encoded, "value": encoded, "key_padding_mask": padded}
            else:
                keys = {"key": x, "value": x}
            outputs.append(module(x, **keys, incremental_state=state, static_kv=cross))
        for mine, other in zip(*outputs, strict=True):
            torch.testing.assert_close(mine, other)
    kept = ours._get_input_buffer(states[0])["prev_key"]
    assert len(kept) == (4 // beam_size if cross else 4)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_autocast(qk_norm: bool, need_weights: bool) -> None:
    module, x = attention(qk_norm=qk_norm), torch.randn(T, B, C)
    hidden = masks(True, True, T)
    wanted = module(x, x, x, **hidden)[0]
    with torch.autocast("cpu", torch.bfloat16):
        output, weights = module(x, x, x, **hidden, need_weights=need_weights)
    assert output.dtype == torch.bfloat16
    assert weights is None or weights.dtype == torch.float32
    torch.testing.assert_close(output.float(), wanted, rtol=0.05, atol=0.05)
    output.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_the_temperature_changes_at_its_update() -> None:
    product = DotProduct(16, temperature=0.1, from_update=3)
    scales = []
    for update in (0, 2, 3, 4, 2):
        product.set_num_updates(update)
        scales.append(product.scale)
    assert scales == pytest.approx([0.25, 0.25, 2.5, 2.5, 0.25])
    assert DotProduct(16, temperature=0.1).scale == pytest.approx(2.5)


def test_parameters_are_fairseqs_and_one_norm_for_all_heads() -> None:
    names = MultiheadAttention(C, H).state_dict().keys()
    assert Attention(C, H).state_dict().keys() == names
    added = Attention(C, H, qk_norm=True).state_dict()
    assert {name: tuple(added[name].shape) for name in added.keys() - names} == {
        f"{norm}.{kind}": (C // H,) for norm in ("q_norm", "k_norm") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_what_it_does_not_have_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"^Attention has no .*{option}") as error:
        Attention(C, H, **{option: True})
    assert "\n" not in str(error.value)
