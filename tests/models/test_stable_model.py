"""What the models of every family share."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

STILL = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
TRANSLATION = {"encoder_layers": 1, "decoder_layers": 1, **STILL}
SPEECH = {"encoder_layers": 1, "encoder_layerdrop": 0.0, "cape_global_shift": 0.0, **STILL}
SPEECH["dropout_input"] = 0.0
LANGUAGE_MODEL = {"decoder_layers": 1, "adaptive_softmax_dropout": 0.0, **STILL}
WORDS = torch.tensor([[4, 5, 6], [7, 8, 4]])
LENGTHS = torch.tensor([3, 3])


@pytest.mark.parametrize(
    ("family", "architecture", "options", "inputs"),
    [
        ("build", "transformer_reparam_postln_6l", TRANSLATION, (WORDS, LENGTHS, WORDS)),
        ("build_speech", "ctc_transformer_reparam_postln_36l", SPEECH, (torch.ones(2, 9, 80),)),
        ("build_lm", "transformer_lm_reparam_noln_wiki103_16l", LANGUAGE_MODEL, (WORDS,)),
    ],
    ids=("translation", "speech", "language model"),
)
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_gamma_has_a_learning_rate_of_its_own(
    scale: float,
    family: str,
    architecture: str,
    options: dict[str, Any],
    inputs: tuple[torch.Tensor, ...],
    request: pytest.FixtureRequest,
) -> None:
    build: Callable[..., Any] = request.getfixturevalue(family)
    state: dict[str, torch.Tensor] = {}
    steps = []
    for factor in (1.0, scale):
        # The second is built when the first has moved on, and cannot be taken for its copy.
        model = build(architecture, gamma_lr_scale=factor, **options)
        if state:
            model.load_state_dict(state)
        state = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train().set_num_updates(0)
        output = model(*inputs)
        features = output["encoder_out"] if isinstance(output, dict) else output[0]
        features.square().mean().backward()
        optimizer.step()
        after = dict(model.named_parameters())
        steps.append({name: value.detach() - state[name] for name, value in after.items()})
    moved = 0
    for name, step in steps[0].items():
        gamma = name.endswith("gamma")
        moved += gamma and bool(step.abs().max() > 1e-6)
        torch.testing.assert_close(
            steps[1][name], step * scale if gamma else step, rtol=1e-3, atol=1e-6
        )
    assert moved > 3
