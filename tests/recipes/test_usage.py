"""What every script of every recipe says of itself."""

from pathlib import Path

import pytest

from tests.recipes.scripts import RECIPES, run_script

SCRIPTS = sorted(RECIPES.glob("*/*.sh"))


def test_recipes_have_the_same_three_scripts_and_a_readme() -> None:
    recipes = [folder for folder in RECIPES.iterdir() if folder.is_dir()]
    assert len(recipes) >= 5
    for recipe in recipes:
        scripts = {path.name for path in recipe.glob("*.sh")}
        assert scripts - {"slurm.sh"} == {"prepare.sh", "train.sh", "evaluate.sh"}
        assert (recipe / "README.md").is_file()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_usage(script: Path, tmp_path: Path) -> None:
    asked = run_script(script, "--help", cwd=tmp_path)
    assert asked.returncode == 0
    assert f"  {script.name} " in asked.stdout
    assert "set -euo" not in asked.stdout
    mistaken = run_script(script, cwd=tmp_path)
    assert mistaken.returncode == 2
    assert mistaken.stderr == asked.stdout
