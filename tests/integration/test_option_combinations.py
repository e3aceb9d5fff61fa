"""Random combinations of model options: built, trained a step, saved, loaded, generated from.

`make fuzz` tries more of them than the suite does.
"""

import math
import os
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from fairseq.trainer import Trainer
from torch import nn

from tests.integration.training import COMMON, first_epoch, parse, trainer_of, update, write_data
from tests.integration.training import DECODER as DECODER_SIZE
from tests.integration.training import ENCODER as ENCODER_SIZE

#: How many, and which; `make fuzz` has its own.
COUNT = int(os.environ.get("FUZZ_COUNT", "20"))
SEED = os.environ.get("FUZZ_SEED", "1")
EOS, WORD = 2, 4

NORMS = ("postln", "preln", "deepnorm", "noln")
REPARAMS = (
    *("none", "none", "spectral_norm", "weight_norm", "sigma", "sigma --reparam-qkv qk"),
    *("sigma --reparam-qkv qkv --gamma-lr-scale 2", "sigma --reparam-init-std 1"),
    "sigma --reparam-qkv qk --reparam-init-std 0.01 --gamma-lr-scale 0",
)
STABILITY = (
    *("--qk-norm", "--attention-temperature 2", "--no-fast-path", "--checkpoint-activations"),
    *("--attention-temperature 0.1 --temperature-from-update 5", "--activation-fn gelu"),
)
ENCODER = (
    *("--encoder-layers 3", "--encoder-embed-dim 24", "--encoder-ffn-embed-dim 16"),
    *("--encoder-attention-heads 1", "--encoder-attention-heads 3", "--encoder-layerdrop 0.5"),
)
DECODER = (
    *("--decoder-layers 3", "--decoder-embed-dim 24", "--decoder-ffn-embed-dim 16"),
    *("--decoder-attention-heads 1", "--decoder-attention-heads 3", "--decoder-layerdrop 0.5"),
    *("--decoder-input-dim 12", "--decoder-output-dim 12", "--decoder-learned-pos"),
    *("--decoder-normalize-before", "--no-decoder-final-norm", "--layernorm-embedding"),
    *("--share-decoder-input-output-embed", "--no-token-positional-embeddings"),
    *("--no-scale-embedding", "--offload-activations", "--tie-adaptive-proj"),
    "--adaptive-softmax-cutoff 6 --adaptive-softmax-dropout 0.1",
    "--quant-noise-pq 0.1 --quant-noise-pq-block-size 4",
)
TRANSLATION = (
    *(*STABILITY, *ENCODER, *DECODER, "--encoder-learned-pos", "--encoder-normalize-before"),
    *("--encoder-layers-to-keep 0 --decoder-layers-to-keep 0", "--share-all-embeddings"),
    *("--merge-src-tgt-embed", "--no-cross-attention", "--cross-self-attention", "--export"),
    "--cross-self-attention --no-cross-attention",
)
LANGUAGE_MODEL = (
    *(*STABILITY, *DECODER, "--decoder-layers-to-keep 0", "--no-reparam-projections"),
    *("--adaptive-input-cutoff 6", "--adaptive-input-factor 2 --adaptive-softmax-factor 2"),
    *("--scale-fc", "--scale-attn", "--scale-heads", "--scale-resids", "--character-embeddings"),
)
SPEECH = (
    *(*STABILITY, *ENCODER, "--reparam-conv", "--cape-global-shift 0", "--cape-local-shift 0.1"),
    *("--cape-max-scale 1.5", "--dropout-input 0"),
)
#: What a language model's architecture sets, and only a Hydra configuration can unset.
UNSET = (
    *("", "", "tie_adaptive_proj=false", "tie_adaptive_weights=false"),
    "tie_adaptive_weights=false adaptive_softmax_cutoff=null",
    "tie_adaptive_weights=false adaptive_input=false",
    "tie_adaptive_weights=false adaptive_input=false adaptive_softmax_cutoff=null",
)
#: The base of each family's command line.
FAMILIES = {
    "translation": (
        *("--task", "translation", "--arch", "transformer_postln_6l", "--batch-size", "6"),
        *(*ENCODER_SIZE, *DECODER_SIZE),
    ),
    "language_model": (
        *("--task", "language_modeling", "--arch", "transformer_lm_postln_wiki103_16l"),
        *("--tokens-per-sample", "8", "--max-target-positions", "24", "--batch-size", "6"),
        *("--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "32", *DECODER_SIZE),
        *("--adaptive-input-cutoff", "6,9", "--adaptive-softmax-cutoff", "6,9"),
    ),
    "speech": (
        *("--task", "ctc_speech", "--train-subset", "train", "--valid-subset", "dev"),
        *("--arch", "ctc_transformer_postln_36l", "--max-tokens", "200", *ENCODER_SIZE),
    ),
}
ADDED = {"translation": TRANSLATION, "language_model": LANGUAGE_MODEL, "speech": SPEECH}


def draw_options(draw: random.Random) -> tuple[str, list[str], list[str]]:
    """A family, the words of a command line and what a Hydra configuration unsets."""
    family = draw.choice(list(FAMILIES))
    unset = draw.choice(UNSET).split() if family == "language_model" else []
    options = draw.sample(ADDED[family], draw.randint(0, 8))
    options += [f"--norm {draw.choice(NORMS)}", f"--reparam {draw.choice(REPARAMS)}"]
    words = [*FAMILIES[family], *" ".join(options).split()]
    if family == "speech":
        criterion = "ctc"
    elif "--adaptive-softmax-cutoff" in words and "adaptive_softmax_cutoff=null" not in unset:
        criterion = "adaptive_loss"
    else:
        criterion = "label_smoothed_cross_entropy"
    words += ["--criterion", f"monitored_{criterion}"]
    return family, words, [f"model.{value}" for value in unset]


@pytest.fixture(scope="module")
def data(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder for each family."""
    folder = tmp_path_factory.mktemp("combinations")
    write_data(folder, data_bin)
    return folder


def legal_trainer(draw: random.Random, data: Path, save_dir: Path) -> tuple[Any, Trainer]:
    """Config and trainer of the first combination that is not refused, in one line."""
    while True:
        family, options, unset = draw_options(draw)
        words = [str(data / family), "--save-dir", str(save_dir), *COMMON, *options]
        # pytest shows it where the test fails.
        print(shlex.join(["fairseq-train", *words]), *unset)
        cfg = parse(words)
        cfg.merge_with_dotlist([*unset, "generation.beam=2", "generation.max_len_b=12"])
        try:
            return cfg, trainer_of(cfg)
        except ValueError as error:
            print(error)
            assert re.fullmatch(r".*--.*", str(error))


@pytest.mark.parametrize("number", range(COUNT))
def test_it_trains_and_generates(number: int, data: Path, tmp_path: Path) -> None:
    cfg, trainer = legal_trainer(random.Random(f"{SEED}-{number}"), data, tmp_path)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    batch = first_epoch(trainer)[0]
    assert math.isfinite(update(trainer, [batch]))
    after = list(trainer.model.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert not all(torch.equal(*pair) for pair in zip(before, after, strict=True))

    checkpoint = str(tmp_path / "checkpoint.pt")
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(checkpoint, {"train_iterator": {"epoch": 1}})
    (model,), _, task = load_model_ensemble_and_task([checkpoint])
    model.prepare_for_inference_(cfg)
    trained = trainer.get_model()
    for each in (model, trained):
        each.eval()
    check_decoding(task, cfg.generation, model, trained, batch)


@torch.no_grad()
def check_decoding(task: Any, cfg: Any, fast: nn.Module, trained: nn.Module, batch: Any) -> None:
    """Holds what a model made for generation finds against the model as it was trained."""
    prefix = torch.full((len(batch["id"]), 1), WORD)
    generator = task.build_generator([fast], cfg)
    found = task.inference_step(generator, [fast], batch, prefix_tokens=prefix)
    assert len(found) == len(prefix)
    net_input = batch["net_input"]
    if "source" in net_input:
        inputs = {name: net_input[name] for name in ("source", "padding_mask")}
        logits = [model(**inputs)["encoder_out"] for model in (fast, trained)]
        torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
        return
    for row, (best, *_) in enumerate(found):
        read = torch.cat([best["tokens"].new_tensor([EOS]), best["tokens"][:-1]])[None]
        inputs = {"src_tokens": read, "src_lengths": None}
        if "prev_output_tokens" in net_input:
            inputs = {key: net_input[key][row : row + 1] for key in inputs}
            inputs["prev_output_tokens"] = read
        output = trained(**inputs)
        logs = trained.get_normalized_probs(output, log_probs=True)[0]
        scores = logs.gather(1, best["tokens"][:, None]).squeeze(1)
        torch.testing.assert_close(best["positional_scores"], scores, rtol=1e-3, atol=1e-3)
