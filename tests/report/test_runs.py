"""Reading run folders, whole, still growing, and broken."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigma_fairseq.report.runs import RunError, load_run

MakeRun = Callable[..., Path]


def rewrite(folder: Path, **changes: Any) -> None:
    head = json.loads((folder / "monitor.json").read_text())
    (folder / "monitor.json").write_text(json.dumps({**head, **changes}))


def test_all_that_was_recorded_is_read(make_run: MakeRun) -> None:
    folder = make_run("run", layers=2, heads=4, updates=50, qk_norm=True)
    run = load_run(folder)
    assert (run.name, run.architecture) == ("run", "transformer_reparam_deepnorm_2l")
    assert run.options["model.qk_norm"] is True
    assert run.options["optimization.lr"] == [0.003]
    assert run.options["bpe"] is None
    assert [one.kind for one in run.attentions[::2]] == [
        "encoder self",
        "decoder self",
        "encoder-decoder",
    ]
    assert {one.heads for one in run.attentions} == {4}
    assert (run.matrices[1].kind, run.matrices[1].stack, run.matrices[1].layer) == (
        "key",
        "encoder",
        0,
    )
    assert run.embeddings == ["encoder.embed_tokens"]
    np.testing.assert_array_equal(run.updates, [10, 20, 30, 40, 50])
    assert run.records.tobytes() == np.load(folder / "monitor.npy").tobytes()
    np.testing.assert_array_equal(run.losses, run.records["loss"])


def test_the_file_is_mapped_and_only_samples_are_read(make_run: MakeRun) -> None:
    run = load_run(make_run("run", updates=1000))
    assert isinstance(run.file, np.memmap)
    sample = run.sample(7)
    assert not np.shares_memory(sample, run.file)
    assert (sample["update"][0], sample["update"][-1]) == (10, 1000)
    assert set(np.diff(sample["update"])) == {160, 170}
    assert len(run.sample(1000)) == 100


@pytest.mark.parametrize("seed", range(5))
def test_what_a_resumed_run_redid_counts_once(make_run: MakeRun, seed: int) -> None:
    folder = make_run("run", layers=1, heads=1, updates=400)
    records = np.load(folder / "monitor.npy")
    draw = np.random.default_rng(seed)
    updates: list[int] = []
    for _ in range(4):  # attempts, each from a checkpoint of an earlier one
        first = int(draw.integers(0, updates[-1] + 1)) if updates else 0
        updates += range(first + 1, first + 1 + int(draw.integers(1, 11)))
    records = records[: len(updates)]
    records["update"] = updates
    records["loss"] = np.arange(len(updates))
    np.save(folder / "monitor.npy", records)
    kept: dict[int, int] = {}
    for place, update in enumerate(updates):
        kept = {earlier: loss for earlier, loss in kept.items() if earlier < update}
        kept[update] = place
    run = load_run(folder)
    assert dict(zip(run.updates.tolist(), run.losses.tolist(), strict=True)) == kept
    assert len(kept) < len(updates)


def test_a_last_record_that_is_torn_is_not_read(make_run: MakeRun) -> None:
    folder = make_run("killed", updates=50)
    with (folder / "monitor.npy").open("ab") as file:
        file.write(b"\x01" * 99)
    np.testing.assert_array_equal(load_run(folder).updates, [10, 20, 30, 40, 50])


def test_without_monitors_the_log_tells_the_loss(tmp_path: Path) -> None:
    lines = [
        "2026-01-01 00:00:00 | INFO | fairseq_cli.train | {'_name': None, 'common': {'seed': 1}, "
        "'model': {'_name': 'transformer_preln_6l', 'norm': preln}}",
        '2026-01-01 | INFO | train_inner | {"loss": "9.5", "num_updates": "50", "lr": "0.001"}',
        '2026-01-01 | INFO | train_inner | {"loss": "7.5", "num_updates": "100", "lr": "0.002"}',
        # What a resumed attempt did again, how it diverged, and how it was cut off.
        '2026-01-01 | INFO | train_inner | {"loss": "7.25", "num_updates": "100", "lr": "0.002"}',
        '2026-01-01 | INFO | train_inner | {"loss": "nan", "num_updates": "150", "lr": "0.003"}',
        '2026-01-01 | INFO | train_inner | {"loss": "7.25", "num_updates": 2}00}',
        '2026-01-01 | INFO | train_inner | {"lo',
    ]
    (tmp_path / "train.log").write_text("\n".join(lines))
    run = load_run(tmp_path)
    assert run.architecture == "transformer_preln_6l"
    np.testing.assert_array_equal(run.updates, [50, 100, 150])
    np.testing.assert_array_equal(run.losses, [9.5, 7.25, np.nan])
    assert (run.options, run.attentions, run.matrices, run.embeddings) == ({}, [], [], [])
    assert run.records["entropy"].size == 0


def damage_header(folder: Path) -> None:
    file = folder / "monitor.json"
    file.write_text(file.read_text()[:-100])


def damage_entry(folder: Path) -> None:
    rewrite(folder, attentions=[{"name": "encoder.layers.0.self_attn"}])


def unknown_kind(folder: Path) -> None:
    head = json.loads((folder / "monitor.json").read_text())
    head["matrices"][0]["kind"] = "<script>"
    rewrite(folder, matrices=head["matrices"])


def layer_that_is_text(folder: Path) -> None:
    head = json.loads((folder / "monitor.json").read_text())
    head["attentions"][0]["layer"] = "<script>"
    rewrite(folder, attentions=head["attentions"])


def layer_far_out(folder: Path) -> None:
    head = json.loads((folder / "monitor.json").read_text())
    head["matrices"][0]["layer"] = 10**12
    rewrite(folder, matrices=head["matrices"])


def newer_format(folder: Path) -> None:
    rewrite(folder, format=2)


def cut_off(folder: Path) -> None:
    os.truncate(folder / "monitor.npy", 5000)


def emptied(folder: Path) -> None:
    (folder / "monitor.npy").write_bytes(b"")


def other_content(folder: Path) -> None:
    (folder / "monitor.npy").write_bytes(b"no array at all" * 9)


def pickled(folder: Path) -> None:
    """An array that would write a file where its pickles were read."""

    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(folder / "ran"),)

    np.save(folder / "monitor.npy", np.array([Payload()]), allow_pickle=True)


def archive(folder: Path) -> None:
    with (folder / "monitor.npy").open("wb") as file:
        np.savez(file, update=np.zeros(4))


def other_array(folder: Path) -> None:
    np.save(folder / "monitor.npy", np.zeros(4))


def of_another_model(folder: Path) -> None:
    head = json.loads((folder / "monitor.json").read_text())
    rewrite(folder, attentions=head["attentions"][:-1])


def no_record(folder: Path) -> None:
    np.save(folder / "monitor.npy", np.load(folder / "monitor.npy")[:0])


def no_records_file(folder: Path) -> None:
    (folder / "monitor.npy").unlink()


def nothing(folder: Path) -> None:
    no_records_file(folder)
    (folder / "monitor.json").unlink()


def empty_log(folder: Path) -> None:
    nothing(folder)
    (folder / "train.log").write_text("Killed\n")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (damage_header, "monitor.json is damaged: it is no JSON, or lacks what a run's has"),
        (damage_entry, "monitor.json is damaged: it is no JSON, or lacks what a run's has"),
        (unknown_kind, "monitor.json is damaged: it is no JSON, or lacks what a run's has"),
        (layer_that_is_text, "monitor.json is damaged: it is no JSON, or lacks what a run's has"),
        (layer_far_out, "monitor.json is damaged: it is no JSON, or lacks what a run's has"),
        (newer_format, "monitor.json is of format 2, not of format 1"),
        (cut_off, "monitor.npy is damaged: it ends too early or is no .npy file"),
        (emptied, "monitor.npy is damaged: it ends too early or is no .npy file"),
        (other_content, "monitor.npy is damaged: it ends too early or is no .npy file"),
        (pickled, "monitor.npy is damaged: it ends too early or is no .npy file"),
        (archive, "monitor.npy is damaged: it ends too early or is no .npy file"),
        (other_array, "monitor.npy is damaged: its records have no update"),
        (of_another_model, "does not belong to the monitor.json beside it: entropy has the shape"),
        (no_record, "holds no recorded update yet"),
        (no_records_file, "holds no recorded update yet"),
        (nothing, "is not a run: it has neither a monitor.json nor a train.log"),
        (empty_log, "holds no recorded update yet"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_says_why(
    make_run: MakeRun, spoil: Callable[[Path], None], reason: str
) -> None:
    folder = make_run("spoilt")
    spoil(folder)
    with pytest.raises(RunError) as raised:
        load_run(folder)
    assert reason in str(raised.value)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (folder / "ran").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere is not a folder"):
        load_run(tmp_path / "nowhere")
