"""The data that the recipes' rehearsals are made of; the recipes' own tests prepare them."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from tests.recipes.scripts import RECIPES, ROOT

spec = spec_from_file_location("smoke_data", ROOT / "scripts" / "smoke_data.py")
assert spec and spec.loader
smoke_data = module_from_spec(spec)
spec.loader.exec_module(smoke_data)


def test_half_a_folder_is_made_again_and_a_whole_one_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    (tmp_path / "raw.part" / "half").mkdir(parents=True)
    assert smoke_data.main(["wikitext2", str(folder)]) == 0
    assert list(tmp_path.iterdir()) == [folder]
    names = [f"wiki.{split}.tokens" for split in ("test", "train", "valid")]
    assert sorted(path.name for path in folder.iterdir()) == names
    (folder / names[0]).write_text("mine")
    assert smoke_data.main(["wikitext2", str(folder)]) == 0
    assert (folder / names[0]).read_text() == "mine"


def test_every_recipe_has_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        smoke_data.main(["imagenet", str(tmp_path / "raw")])
    assert raised.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "invalid choice: 'imagenet'" in last
    for recipe in RECIPES.iterdir():
        assert not recipe.is_dir() or f"'{recipe.name}'" in last
