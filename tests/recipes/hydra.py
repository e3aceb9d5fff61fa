"""fairseq-hydra-train with the recipes' configurations, beside the command lines of train.sh."""

import shlex
from argparse import Namespace
from pathlib import Path

from fairseq import options
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hydra.core.global_hydra import GlobalHydra
from hydra.experimental import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from tests.conftest import USER_DIR, run_fairseq
from tests.integration.training import losses_of
from tests.recipes.scripts import RECIPES

#: What training does not read, and the command line fills in for it.
UNREAD = {"common_eval", "scoring"}


def parsed(line: str) -> DictConfig:
    """What fairseq-train makes of a command line, with the plugin that the tests have imported."""
    command, *words = shlex.split(line)
    assert command == "fairseq-train"
    words += ["--user-dir", USER_DIR]
    args = options.parse_args_and_arch(options.get_training_parser(), words)
    return convert_namespace_to_omegaconf(args)


def required(cfg: DictConfig) -> list[str]:
    """The overrides that every configuration needs, and those that depend on the machine."""
    return [
        f"common.user_dir='{cfg.common.user_dir}'",
        f"common.seed={cfg.common.seed}",
        f"task.data='{cfg.task.data}'",
        f"model._name={cfg.model._name}",
        f"checkpoint.save_dir='{cfg.checkpoint.save_dir}'",
        "distributed_training.distributed_world_size="
        f"{cfg.distributed_training.distributed_world_size}",
    ]


def composed(recipe: str, overrides: list[str]) -> DictConfig:
    """What fairseq-hydra-train makes of a recipe's configuration, the plugin's part included."""
    hydra_init("train")
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(RECIPES / recipe / "config")):
        cfg = compose("train", overrides=overrides)
    add_defaults(cfg)
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))


def differences(found: DictConfig, expected: DictConfig) -> dict[str, object]:
    """Settings of `expected`, as SECTION.NAME, that are others in `found` or not there."""
    assert found.keys() == expected.keys()
    different: dict[str, object] = {}
    for section in expected.keys() - UNREAD:
        settings, own = expected[section], found[section]
        if isinstance(settings, Namespace):
            # fairseq's Adagrad has no dataclass: in its place is the whole command line.
            settings = {name: getattr(settings, name) for name in ("_name", "lr", "weight_decay")}
        elif settings is None or own is None:
            assert settings is own, section
            continue
        else:
            assert settings.keys() == own.keys(), section
        for name, value in settings.items():
            if own[name] != value:
                different[f"{section}.{name}"] = value
    return different


def hydra_losses(recipe: str, line: str, folder: Path) -> list[float]:
    """Trains with a recipe's configuration and what a command line of SMOKE=1 train.sh has instead.

    Args:
        recipe: its name.
        line: the command line.
        folder: where to train.

    Returns:
        The loss of every update, as logged.
    """
    cfg = parsed(line)
    overrides = required(cfg)
    for name, value in differences(composed(recipe, overrides), cfg).items():
        overrides.append(f"++{name}={'null' if value is None else value}")
    run_fairseq(
        "hydra_train",
        *("--config-dir", str(RECIPES / recipe / "config"), "--config-name", "train"),
        *(*overrides, f"checkpoint.save_dir='{folder}'", f"hydra.run.dir='{folder}'"),
    )
    return losses_of((folder / "hydra_train.log").read_text())
