"""What a monitor reads, against the attention weights, gradients and weights themselves."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from sigma_fairseq.monitor.monitor import Monitor

PAD = 1
SHALLOW = {"encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
MODELS = [
    ("transformer", {}),
    ("transformer_postln_6l", {}),
    ("transformer_preln_6l", {"qk_norm": True}),
    ("transformer_reparam_deepnorm_6l", {"attention_temperature": 0.3}),
    ("transformer_reparam_noln_6l", {"reparam_qkv": "qkv", "qk_norm": True}),
]


def batch(seed: int = 0, sentences: int = 3) -> dict[str, Tensor]:
    """Sources padded on the left, targets on the right, as fairseq does."""
    torch.manual_seed(seed)
    source = torch.randint(4, 24, (sentences, 6))
    target = torch.randint(4, 24, (sentences, 5))
    for row in range(sentences):
        source[row, : row % 3] = PAD
        target[row, 5 - (row + seed) % 3 :] = PAD
    lengths = source.ne(PAD).sum(1)
    return {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": target}


def loss_of(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    logits = model(**inputs)[0]
    target = inputs["prev_output_tokens"]
    return F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=PAD, reduction="sum"
    )


def sample(
    model: nn.Module, batches: list[dict[str, Tensor]], rate: float = 0.1, **options: Any
) -> tuple[np.ndarray, Monitor]:
    """One update over some micro-batches, under a monitor."""
    records: list[np.ndarray] = []
    monitor = Monitor(model, 1, options.pop("sigma_error", False), records.append)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    update(model, monitor, optimizer, batches, 0)
    return records[0], monitor


def update(
    model: nn.Module,
    monitor: Monitor,
    optimizer: torch.optim.Optimizer,
    batches: list[dict[str, Tensor]],
    number: int,
) -> None:
    optimizer.zero_grad()
    for inputs in batches:
        with monitor.forward(number) as add:
            loss = loss_of(model, inputs)
        add(loss, loss.detach(), inputs["prev_output_tokens"].ne(PAD).sum())
        loss.backward()
    optimizer.step()


def brute_force(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, list[list[float]]]:
    """Entropies of all valid queries by attention and head, from the weights attention returns."""
    weights: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, MultiheadAttention):
            module.skip_embed_dim_check = True  # fairseq's path that gives weights by head

            def ask(module: Any, args: Any, kwargs: Any) -> Any:
                return args, {**kwargs, "need_weights": True, "need_head_weights": True}

            def keep(module: Any, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                weights[name] = output[1].detach().double()  # (heads, batch, queries, keys)

            handles.append(module.register_forward_pre_hook(ask, with_kwargs=True))
            handles.append(module.register_forward_hook(keep, with_kwargs=True))
    model(**inputs)
    for handle in handles:
        handle.remove()
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            module.skip_embed_dim_check = False
    found = {}
    for name, probabilities in weights.items():
        target = inputs.get("prev_output_tokens", inputs["src_tokens"])  # a language model has one
        side = inputs["src_tokens"] if name.startswith("encoder") else target
        valid = side.ne(PAD)  # (batch, queries)
        logs = torch.where(probabilities > 0, probabilities, 1).log()
        entropy = -(probabilities * logs).sum(-1)
        found[name] = [head[valid].tolist() for head in entropy]
    return found


@pytest.fixture(params=MODELS, ids=lambda case: f"{case[0]}-{'-'.join(map(str, case[1]))}")
def model(request: pytest.FixtureRequest, build: Callable[..., Any]) -> nn.Module:
    torch.manual_seed(0)
    name, options = request.param
    model = build(name, **SHALLOW, **options).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:  # sharper attention than a fresh model's
                parameter.mul_(2).add_(0.1 * torch.randn_like(parameter))
    return model


def test_entropy_equals_brute_force(model: nn.Module) -> None:
    batches = [batch(0), batch(1)]
    expected: dict[str, list[list[float]]] = {}
    for inputs in batches:
        for name, heads in brute_force(model, inputs).items():
            before = expected.setdefault(name, [[] for _ in heads])
            expected[name] = [a + b for a, b in zip(before, heads, strict=True)]
    record, monitor = sample(model, batches)
    assert len(monitor.attentions) == 6
    for index, attention in enumerate(monitor.attentions):
        for head, values in enumerate(expected[attention.name]):
            assert record["entropy"][index, head] == pytest.approx(np.mean(values), abs=1e-5)
            # A query that sees one key is at 0 whatever the model does.
            least = min(value for value in values if value != 0)
            assert record["entropy_min"][index, head] == pytest.approx(least, abs=1e-5)
            assert 0 <= record["entropy_bound"][index, head] <= np.mean(values) + 1e-6
    kinds = [attention.kind for attention in monitor.attentions]
    assert kinds == ["encoder self"] * 2 + ["decoder self", "encoder-decoder"] * 2


@pytest.mark.parametrize("norm", ["postln", "noln"])
def test_a_language_models_entropy_equals_brute_force(
    build_lm: Callable[..., Any], norm: str
) -> None:
    torch.manual_seed(0)
    model = build_lm(
        "transformer_lm_postln_wiki103_16l",
        norm=norm,
        reparam="sigma" if norm == "noln" else "none",
        decoder_layers=2,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    ).train()
    words = batch()["prev_output_tokens"]  # padded on the right
    inputs = {"src_tokens": words, "src_lengths": words.ne(PAD).sum(1)}
    expected = brute_force(model, inputs)
    records: list[np.ndarray] = []
    monitor = Monitor(model, 1, False, records.append)
    with monitor.forward(0) as add:
        loss = model.decoder.adaptive_softmax(model(**inputs)[0], words)[0][0].sum()
    add(loss, loss.detach(), len(words))
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert [attention.kind for attention in monitor.attentions] == ["decoder self"] * 2
    for index, attention in enumerate(monitor.attentions):
        for head, values in enumerate(expected[attention.name]):
            assert records[0]["entropy"][index, head] == pytest.approx(np.mean(values), abs=1e-5)
            # The causal mask: the first query sees one key, and no query more than those before it.
            assert min(values) == 0
            assert max(values) <= math.log(words.shape[1])


def test_uniform_entropy_is_that_of_the_keys_a_query_sees(build: Callable[..., Any]) -> None:
    record, _ = sample(build("transformer_postln_6l", **SHALLOW).train(), [batch()])
    # Sources have 6, 5 and 4 tokens, targets 5, 4 and 3.
    encoder = (6 * math.log(6) + 5 * math.log(5) + 4 * math.log(4)) / 15
    decoder = sum(math.log(math.factorial(length)) for length in (5, 4, 3)) / 12
    cross = (5 * math.log(6) + 4 * math.log(5) + 3 * math.log(4)) / 12
    expected = [encoder, encoder, decoder, cross, decoder, cross]
    assert record["entropy_max"].tolist() == pytest.approx(expected, rel=1e-5)


def test_bound_is_the_theorems(build: Callable[..., Any]) -> None:
    """One sequence, no bias on the queries: σ, σx and T of Theorem 3.1 and nothing else."""
    model = build("transformer_postln_6l", encoder_layers=1, decoder_layers=1, dropout=0.0).train()
    with torch.no_grad():
        for parameter in model.encoder.layers[0].self_attn.parameters():
            parameter.mul_(0.05)
    inputs = batch(0, 1)
    x: list[Tensor] = []
    handle = model.encoder.layers[0].register_forward_pre_hook(lambda _, args: x.append(args[0]))
    record, _ = sample(model, [inputs], rate=0.0)
    handle.remove()
    attention = model.encoder.layers[0].self_attn
    gram = torch.linalg.matrix_norm((x[0][:, 0] @ x[0][:, 0].T).double(), 2).item()
    for head in range(4):
        rows = slice(4 * head, 4 * head + 4)
        product = attention.k_proj.weight[rows].T @ attention.q_proj.weight[rows]
        sigma = torch.linalg.matrix_norm(product.double(), 2).item()
        s, keys = sigma * gram / math.sqrt(4), 6
        beta = math.exp(-s * math.sqrt(keys / (keys - 1)))
        weight = 1 + (keys - 1) * beta
        bound = math.log(weight) + s * math.sqrt(keys * (keys - 1)) * beta / weight
        # The monitor's σx is an upper bound, a little above it.
        assert record["entropy_bound"][0, head] == pytest.approx(bound, abs=0.02)
        assert record["entropy_bound"][0, head] <= bound + 1e-4
        assert 0.05 < bound < record["entropy"][0, head]


def test_micro_batches_count_as_one_batch(model: nn.Module) -> None:
    whole = batch(2, 4)
    halves = [
        {key: value[half] for key, value in whole.items()} for half in (slice(2), slice(2, 4))
    ]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    one, monitor = sample(model, [whole])
    model.load_state_dict(state)
    two, _ = sample(model, halves)
    for field in monitor.dtype.names:
        if field not in ("seconds", "entropy_bound"):
            np.testing.assert_allclose(one[field], two[field], rtol=2e-4, atol=1e-5, err_msg=field)


def test_a_repeated_batch_of_an_idle_worker_does_not_count(model: nn.Module) -> None:
    records: list[np.ndarray] = []
    monitor = Monitor(model, 1, False, records.append)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    update(model, monitor, optimizer, [batch(0)], 0)
    optimizer.zero_grad()
    for inputs, dummy in ((batch(0), False), (batch(1), True)):
        with monitor.forward(1) as add:
            loss = loss_of(model, inputs)
        add(loss, loss.detach(), inputs["prev_output_tokens"].ne(PAD).sum())
        if dummy:
            loss *= 0  # fairseq's ignore_grad
        loss.backward()
    optimizer.step()
    for field in ("loss", "entropy", "entropy_min"):
        np.testing.assert_allclose(records[0][field], records[1][field], rtol=1e-5)


def test_a_try_that_fairseq_gave_up_does_not_count(model: nn.Module) -> None:
    records: list[np.ndarray] = []
    monitor = Monitor(model, 1, False, records.append)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with monitor.forward(0) as add:  # an overflow in fp16: no step, the gradients are cleared
        loss = loss_of(model, batch(1))
    add(loss, loss.detach(), 1)
    loss.backward()
    update(model, monitor, optimizer, [batch(0)], 0)
    update(model, monitor, optimizer, [batch(0)], 1)
    assert [int(record["update"]) for record in records] == [0, 1]
    for field in ("loss", "entropy"):
        np.testing.assert_allclose(records[0][field], records[1][field], rtol=1e-5)


def test_gradients_updates_and_embeddings(model: nn.Module) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    table = model.encoder.embed_tokens.weight.detach().numpy().copy()
    record, monitor = sample(model, [batch()], rate=0.3)
    for index, matrix in enumerate(monitor.matrices):
        parameter = matrix.parameter()
        norm = parameter.grad.double().norm().item()
        assert record["gradient_norm"][index] == pytest.approx(norm, rel=1e-4)
        name = next(name for name, p in model.named_parameters() if p is parameter)
        ratio = (parameter - before[name]).double().norm() / before[name].double().norm()
        assert record["update_ratio"][index] == pytest.approx(ratio.item(), rel=1e-3)
        sigma = matrix.sigma_norm()
        gamma = math.nan if sigma is None else before[gamma_name(model, sigma)].item()
        np.testing.assert_equal(record["gamma"][index], np.float32(gamma))
    names = [name for name, _ in monitor.embeddings]
    index = names.index("encoder.embed_tokens")
    assert record["embedding_variability"][index] == pytest.approx(table.std(0).mean(), rel=1e-5)
    assert np.isnan(record["sigma_error"]).all()


def gamma_name(model: nn.Module, sigma: nn.Module) -> str:
    return next(name for name, p in model.named_parameters() if p is sigma.gamma)


@pytest.mark.parametrize("model", [MODELS[0], MODELS[3]], indirect=True, ids=["fairseq", "ours"])
def test_monitors_change_no_loss_gradient_or_random_number(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "dropout_module"):
            module.dropout_module.p = 0.2
    state = {key: value.clone() for key, value in model.state_dict().items()}
    runs = []
    for watched in (True, False):
        model.load_state_dict(state)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        records: list[np.ndarray] = []
        monitor = Monitor(model, 1 if watched else 100, True, records.append)
        torch.manual_seed(5)
        for number in (1, 2, 3):
            model.set_num_updates(number)
            update(model, monitor, optimizer, [batch(number)], number)
        assert len(records) == (3 if watched else 0)
        random = torch.rand(3)
        runs.append([random, *(value.clone() for value in model.state_dict().values())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_activation_checkpointing_changes_no_figure(build: Callable[..., Any]) -> None:
    records = []
    state = None
    for checkpointed in (False, True):
        model = build(
            "transformer_reparam_postln_6l", checkpoint_activations=checkpointed, **SHALLOW
        ).train()
        state = state or model.state_dict()
        model.load_state_dict(state)
        record, monitor = sample(model, [batch()], rate=0.0)
        records.append(record)
    for field in monitor.dtype.names:
        if field != "seconds":
            np.testing.assert_allclose(*(record[field] for record in records), rtol=1e-5)


def test_a_frozen_part_and_a_dropped_layer_have_no_figures(build: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = build("transformer_preln_6l", encoder_layerdrop=1.0, **SHALLOW).train()
    for parameter in model.decoder.layers[0].parameters():
        parameter.requires_grad = False
    record, monitor = sample(model, [batch()])
    for index, attention in enumerate(monitor.attentions):
        assert np.isnan(record["entropy"][index]).all() == (attention.kind == "encoder self")
    for index, matrix in enumerate(monitor.matrices):
        frozen = matrix.name.startswith("decoder.layers.0")
        dropped = matrix.name.startswith("encoder.layers")
        assert np.isnan(record["gradient_norm"][index]) == (frozen or dropped)
        assert np.isfinite(record["spectral_norm"][index])


def test_bfloat16_autocast_gives_the_entropy_of_what_it_multiplied(model: nn.Module) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = brute_force(model, batch())
        record, monitor = sample(model, [batch()], rate=0.0)
    for index, attention in enumerate(monitor.attentions):
        means = [np.mean(values) for values in expected[attention.name]]
        np.testing.assert_allclose(record["entropy"][index], means, atol=0.05)


def test_a_composite_optimizer_makes_one_record(model: nn.Module) -> None:
    records: list[np.ndarray] = []
    monitor = Monitor(model, 1, False, records.append)
    parameters = list(model.parameters())
    halves = [torch.optim.SGD(half, lr=0.1) for half in (parameters[::2], parameters[1::2])]
    with monitor.forward(0) as add:
        loss = loss_of(model, batch())
    add(loss, loss.detach(), 1)
    loss.backward()
    halves[0].step()
    assert not records
    halves[1].step()
    assert len(records) == 1
    assert np.isfinite(records[0]["update_ratio"]).all()


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="no attention to monitor"):
        Monitor(nn.Linear(2, 2), 1, False, lambda record: None)


def test_an_optimizer_that_holds_something_else_is_an_error_and_not_silence(
    model: nn.Module,
) -> None:
    monitor = Monitor(model, 1, False, lambda record: None)
    shards = [parameter.detach().clone().flatten()[::2] for parameter in model.parameters()]
    for shard in shards:
        shard.requires_grad = True
        shard.grad = torch.zeros_like(shard)
    optimizer = torch.optim.SGD(shards, lr=0.1)
    with pytest.raises(RuntimeError, match="fairseq's optimizers without sharding"):
        for number in range(2):
            update(model, monitor, optimizer, [batch()], number)
            model.zero_grad()
