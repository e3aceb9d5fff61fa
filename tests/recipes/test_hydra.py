"""The recipes' configurations for fairseq-hydra-train, held against what train.sh asks for."""

from pathlib import Path

import pytest

from tests.recipes.hydra import composed, differences, parsed, required
from tests.recipes.scripts import RECIPES, run_script

SPEECH = "ctc_transformer_{}_36l"
LM = "transformer_lm_{}_wiki103_16l"
HOURS = "train-clean-100,train-clean-360,train-other-500"
DROPOUTS = ("dropout_input", "attention_dropout", "activation_dropout", "encoder_layerdrop")
ADAGRAD = ("optimizer._name=adagrad", "lr_scheduler.warmup_updates=64000")
ADAGRAD += ("lr_scheduler.lr_deacy_period=266000",)

#: Recipe, arguments of train.sh, the architecture among them, and overrides of the configuration.
VARIANTS: list[tuple[str, list[str], str, list[str]]] = [
    ("multi30k_en_de", ["ARCH", "1"], "transformer_reparam_deepnorm_18l", []),
    ("multi30k_en_de", ["ARCH", "2"], "transformer_preln_6l", ["optimization.lr=[5e-4]"]),
    ("wmt17_en_de", ["ARCH", "1"], "transformer_reparam_deepnorm_100l", []),
    (
        *("wmt17_en_de", ["ARCH", "1"], "transformer_deepnorm_50l"),
        ["optimization.lr=[1.4e-3]", "optimization.update_freq=[8]", "dataset.max_tokens=8192"],
    ),
    (
        *("wmt17_en_de", ["ARCH", "1"], "transformer_reparam_postln_18l"),
        [
            *("optimization.update_freq=[4]", "dataset.max_tokens=16384"),
            "checkpoint.save_interval_updates=250",
        ],
    ),
    ("librispeech", ["100h", "ARCH", "lars", "1"], SPEECH.format("reparam_postln"), []),
    (
        *("librispeech", ["960h", "ARCH", "lars", "1"], SPEECH.format("reparam_noln")),
        [
            *(f"dataset.train_subset='{HOURS}'", "model.gamma_lr_scale=2", "optimization.lr=[1]"),
            *(f"model.{name}=0.1" for name in DROPOUTS),
        ],
    ),
    (
        *("librispeech", ["100h", "ARCH", "lars", "1"], "ctc_transformer_preln_72l"),
        ["model.reparam_qkv=separate", "optimization.lr=[0.5]", "dataset.max_tokens=12000"],
    ),
    (
        *("librispeech", ["100h", "ARCH", "adagrad", "1"], SPEECH.format("reparam_postln")),
        [*ADAGRAD, "+optimizer.lr=[1]", "optimization.lr=[1]", "model.reparam_qkv=qk"],
    ),
    ("spoken_digits", ["ARCH", "lars", "1"], SPEECH.format("reparam_postln"), []),
    (
        *("spoken_digits", ["ARCH", "lars", "1"], SPEECH.format("postln")),
        ["model.reparam_qkv=separate", "optimization.lr=[0.1]"],
    ),
    (
        *("spoken_digits", ["ARCH", "lars", "1"], SPEECH.format("preln")),
        ["model.reparam_qkv=separate"],
    ),
    (
        *("spoken_digits", ["ARCH", "adagrad", "1"], SPEECH.format("reparam_postln")),
        [
            *("optimizer._name=adagrad", "+optimizer.lr=[0.015]", "optimization.lr=[0.015]"),
            *("lr_scheduler.warmup_updates=100", "model.reparam_qkv=qk", "model.gamma_lr_scale=5"),
        ],
    ),
    ("wikitext103", ["ARCH", "1", "2", "1e-4"], LM.format("reparam_noln"), []),
    (
        *("wikitext103", ["ARCH", "3", "2.5", "1e-3"], "transformer_lm_postln_wiki103_32l"),
        ["optimization.lr=[2.5]", "optimizer.weight_decay=1e-3"],
    ),
    ("wikitext2", ["ARCH", "1", "2", "1e-4"], LM.format("reparam_noln"), []),
    (
        *("wikitext2", ["ARCH", "1", "1", "0"], LM.format("preln")),
        ["optimization.lr=[1]", "optimizer.weight_decay=0", "model.reparam_init_std=null"],
    ),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks prepared to every train.sh."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "data").mkdir()
    for name in ("prepared.txt", *(f"{name}.tsv" for name in (*HOURS.split(","), "dev-clean"))):
        (folder / name).touch()
        (folder / "data" / name).touch()
    (folder / "dev-other.tsv").touch()
    return folder


@pytest.mark.parametrize(
    ("recipe", "arguments", "arch", "overrides"),
    VARIANTS,
    ids=[f"{recipe}-{'-'.join(arguments)}-{arch}" for recipe, arguments, arch, _ in VARIANTS],
)
def test_settings_are_those_of_train(
    recipe: str, arguments: list[str], arch: str, overrides: list[str], data: Path
) -> None:
    """Every setting of every component, those that nobody gave included."""
    arguments = [arch if word == "ARCH" else word for word in arguments]
    env = {"DATA_DIR": data, "SAVE_DIR": data / "run", "NGPUS": 8, "DRY_RUN": 1}
    shown = run_script(RECIPES / recipe / "train.sh", *arguments, cwd=data, **env)
    assert shown.returncode == 0, shown.stderr
    expected = parsed(shown.stdout)
    found = composed(recipe, [*required(expected), *overrides])
    assert differences(found, expected) == {}
