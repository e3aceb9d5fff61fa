"""The recipes' jobs for SLURM, with srun, scontrol and fairseq-train that only record."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.distributed.utils import infer_init_method
from omegaconf import OmegaConf

from tests.recipes.scripts import options_of

ROOT = Path(__file__).resolve().parents[2]
#: Arguments of train.sh, what makes its batch fit 16 GPUs, and that batch in fairseq's terms.
RECIPES = {
    "librispeech": (
        ["960h", "ctc_transformer_reparam_postln_36l", "lars", "1"],
        {"MAX_SECONDS": "120"},
        192_000,
    ),
    "wikitext103": (
        ["transformer_lm_reparam_noln_wiki103_16l", "1", "2", "1e-4"],
        {"MAX_TOKENS": "4608"},
        73_728,
    ),
    "wmt17_en_de": (["transformer_reparam_deepnorm_18l", "1"], {}, 524_288),
}
NODES, GPUS = 2, 8
COMMANDS = {
    "srun": """
echo "$*" >>"$RECORD/srun"
while [ "${1#--}" != "$1" ]; do shift; done
SLURM_NODEID=1 "$@" &
SLURM_NODEID=0 "$@" && wait $!
""",
    # Begins when all nodes are there.
    "fairseq-train": """
printf "%q " fairseq-train "$@" >>"$RECORD/node$SLURM_NODEID"
until [ -f "$RECORD/node0" ] && [ -f "$RECORD/node1" ]; do sleep 0.02; done
""",
    "scontrol": 'printf "gpu4\\ngpu5\\n"',
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of the recipes and their scripts alone, and the commands on PATH."""
    project, commands, record = (tmp_path / name for name in ("project", "commands", "record"))
    for folder in (commands, record):
        folder.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (commands / name).chmod(0o755)
    shutil.copytree(ROOT / "recipes", project / "recipes")
    (project / "scripts").symlink_to(ROOT / "scripts")
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(record))
    return project


def prepare(project: Path, recipe: str) -> None:
    data = project / "data" / recipe
    (data / "bin").mkdir(parents=True)
    for name in ("prepared.txt", "bin/dict.txt", "dev-clean.tsv"):
        (data / name).touch()
    for size in ("clean-100", "clean-360", "other-500"):
        (data / f"train-{size}.tsv").touch()


def submit(project: Path, recipe: str, *arguments: str, job: int, **env: str) -> str:
    """Runs the script as a job does: a copy of it elsewhere, in the folder it is submitted from."""
    spool = project.parent / f"job{job}"
    spool.mkdir()
    script = Path(shutil.copy(project / "recipes" / recipe / "slurm.sh", spool / "slurm_script"))
    slurm = {
        "SLURM_JOB_ID": job,
        "SLURM_SUBMIT_DIR": project,
        "SLURM_JOB_NUM_NODES": NODES,
        "SLURM_GPUS_ON_NODE": GPUS,
        "SLURM_CPUS_PER_TASK": 16,
    }
    result = subprocess.run(
        [str(script), *arguments],
        cwd=project,
        env={**os.environ, **env, **{name: str(value) for name, value in slurm.items()}},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_node_has_the_same_command(recipe: str, project: Path, tmp_path: Path) -> None:
    arguments, env, batch = RECIPES[recipe]
    prepare(project, recipe)
    said = submit(project, recipe, *arguments, "--log-interval", "7", job=1, **env)
    assert said.count(f"{recipe}: training") == 1
    record = tmp_path / "record"
    train = f"{project}/recipes/{recipe}/train.sh {' '.join(arguments)} --log-interval 7"
    srun = (record / "srun").read_text()
    assert srun.startswith(f"--cpus-per-task=16 --kill-on-bad-exit=1 {train} --distributed-port ")
    line = (record / "node0").read_text()
    assert line == (record / "node1").read_text()
    options = options_of(line)
    assert options["--log-interval"] == ["7"]
    assert options["--distributed-world-size"] == [str(NODES * GPUS)]
    assert 20_000 <= int(options["--distributed-port"][0]) < 30_000
    tokens, accumulated = (int(options[f"--{name}"][0]) for name in ("max-tokens", "update-freq"))
    assert NODES * GPUS * tokens * accumulated == batch

    save = Path(options["--save-dir"][0])
    assert (save / "train.log").read_text().count("fairseq-train") == 1
    # Submitted again after its end, as another job: nothing to do.
    assert "this run has ended" in submit(
        project, recipe, *arguments, "--log-interval", "7", job=2, **env
    )
    assert (record / "node0").read_text() == line


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("node", range(NODES))
def test_fairseq_finds_its_ranks(
    node: int, recipe: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fairseq makes of the command on a node whose variables SLURM sets."""
    arguments, env, _ = RECIPES[recipe]
    prepare(project, recipe)
    submit(project, recipe, *arguments, job=1, **env)
    options = options_of((tmp_path / "record" / f"node{node}").read_text())
    script = (project / "recipes" / recipe / "slurm.sh").read_text()
    asked = dict(
        word.removeprefix("--").split("=")
        for word in shlex.split(script.replace("#SBATCH", ""), comments=True)
        if word.startswith("--") and "=" in word
    )
    for name, value in (
        ("SLURM_STEP_NODELIST", "gpu[4-5]"),
        ("SLURM_NNODES", NODES),
        ("SLURM_NTASKS_PER_NODE", asked["ntasks-per-node"]),
        ("SLURM_NODEID", node),
    ):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(asked["gpus-per-node"]))
    cfg = OmegaConf.structured(DistributedTrainingConfig)
    cfg.tpu = False
    cfg.distributed_world_size = int(options["--distributed-world-size"][0])
    cfg.distributed_port = int(options["--distributed-port"][0])
    infer_init_method(cfg)
    assert cfg.distributed_init_method == f"tcp://gpu4:{cfg.distributed_port}"
    assert cfg.distributed_world_size == NODES * GPUS
    assert cfg.distributed_rank == node * GPUS
    assert cfg.distributed_num_procs == GPUS
    assert not cfg.distributed_no_spawn


@pytest.mark.parametrize("recipe", RECIPES)
def test_mistakes_are_one_line(recipe: str, project: Path, tmp_path: Path) -> None:
    script = project / "recipes" / recipe / "slurm.sh"

    def error(**env: str) -> str:
        result = subprocess.run(
            [str(script), *RECIPES[recipe][0]],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 1
        return result.stderr

    assert error() == f"{recipe}: error: start this script by sbatch\n"
    elsewhere = f"{recipe}: error: {tmp_path} is not the project's folder; submit from there\n"
    assert error(SLURM_JOB_ID="1", SLURM_SUBMIT_DIR=str(tmp_path)) == elsewhere
