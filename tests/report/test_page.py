"""The page as a whole: it stands alone, names what it could not read, and draws what is there."""

import base64
import json
import re
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sigma_fairseq.cli import main
from sigma_fairseq.report.page import write_report
from sigma_fairseq.report.runs import RunError

MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """Reads a page and checks that each element that is opened is closed."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        assert tag not in ("script", "link", "iframe")
        self.elements.add(tag)
        self.attributes.update(values)
        if "src" in values:
            self.sources.append(values["src"])
        if "href" in values:
            self.links.append(values["href"])
        self.anchors.add(values.get("id", ""))
        if tag not in ("meta", "img", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(autouse=True)
def no_warning() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_healthy_and_a_collapsing_run(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run("good", layers=2), make_run("bad", collapses=True, layers=2, lr=0.01)]
    report = write_report(folders, tmp_path / "out" / "deep")
    assert report == (tmp_path / "out" / "deep" / "report.html", [])
    page = Page(report.page)
    files = {file.name: file.read_bytes() for file in report.page.parent.glob("*.png")}
    assert set(files) == {
        "loss.png",
        "entropy.png",
        *(
            f"entropy_{kind}_{what}.png"
            for kind in ("encoder_self", "decoder_self", "encoder_decoder")
            for what in ("map", "layers")
        ),
        "bound.png",
        "spectral_norms.png",
        "key_query_norms.png",
        "gamma.png",
        "gradients_encoder.png",
        "gradients_decoder.png",
        "update_ratio.png",
        "embedding_variability.png",
    }
    prefix = "data:image/png;base64,"
    assert all(source.startswith(prefix) for source in page.sources)
    embedded = [base64.b64decode(source.removeprefix(prefix)) for source in page.sources]
    assert sorted(embedded) == sorted(files.values())
    assert page.links and {link.removeprefix("#") for link in page.links} <= page.anchors
    assert "The bound of bad stays below 0.01 nats in every head" in page.text
    assert report.page.stat().st_size < 2_000_000


def test_a_language_model_of_one_layer_and_one_record(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("lm", layers=1, heads=1, updates=10)
    head = json.loads((folder / "monitor.json").read_text())
    kept = [place for place, one in enumerate(head["attentions"]) if one["kind"] == "decoder self"]
    rows = [place for place, one in enumerate(head["matrices"]) if one["stack"] == "decoder"]
    old = np.load(folder / "monitor.npy")
    head["attentions"] = [head["attentions"][place] for place in kept]
    head["matrices"] = [head["matrices"][place] for place in rows]
    places = {len(old["entropy_max"][0]): kept, len(old["gamma"][0]): rows}
    fields = [
        (name, old[name][:, places.get(old[name].shape[1], [0])]) for name in old.dtype.names[4:]
    ]
    shapes = [(name, "<f4", values.shape[1:]) for name, values in fields]
    new = np.zeros(1, dtype=[*((name, old.dtype[name]) for name in old.dtype.names[:4]), *shapes])
    for name in old.dtype.names[:4]:
        new[name] = old[name]
    for name, values in fields:
        new[name] = values
    (folder / "monitor.json").write_text(json.dumps(head))
    np.save(folder / "monitor.npy", new)
    page = write_report([folder], tmp_path / "out").page
    names = {file.name for file in page.parent.glob("*.png")}
    assert "entropy_decoder_self_map.png" in names
    assert not [name for name in names if "encoder" in name]


def write_log(folder: Path, *losses: float) -> Path:
    """A run without monitors."""
    folder.mkdir(parents=True)
    points = [
        f'| train_inner | {{"loss": "{loss}", "num_updates": "{update}", "lr": "1"}}\n'
        for update, loss in enumerate(losses, 1)
    ]
    (folder / "train.log").write_text("".join(points))
    return folder


def test_only_the_log_is_there(tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", 9.0, float("inf"), float("nan"))
    page = write_report([run], tmp_path / "out").page
    assert [file.name for file in page.parent.glob("*.png")] == ["loss.png"]
    assert "Not recorded by any of these runs: attention entropy, " in Page(page).text


def test_a_run_with_monitors_beside_one_without(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [write_log(tmp_path / "logged", 7.5), make_run("monitored", layers=1)]
    text = Page(write_report(folders, tmp_path / "out").page).text
    assert "Attention entropy, the runs side by side" in text


def test_runs_of_the_same_name_and_one_named_twice(tmp_path: Path) -> None:
    runs = [write_log(tmp_path / name / "seed1", 2, 1) for name in ("a<b>", "b&amp;")]
    page = Page(write_report([*runs, runs[0]], tmp_path / "out").page)
    assert "2 runs" in page.text
    assert "a<b>/seed1" in page.text and "b&amp;/seed1" in page.text


def test_a_figure_that_is_never_finite(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("nan", layers=1)
    records = np.load(folder / "monitor.npy")
    for name in records.dtype.names[2:]:
        records[name] = np.nan
    np.save(folder / "monitor.npy", records)
    page = Page(write_report([folder], tmp_path / "out").page)
    assert "not finite" in page.text


def test_the_readable_are_drawn_and_the_others_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty<1>"
    empty.mkdir()
    report = write_report(
        [write_log(tmp_path / "good", 2), empty, tmp_path / "gone"], tmp_path / "out"
    )
    assert report.unread == [
        f"{empty} is not a run: it has neither a monitor.json nor a train.log",
        f"{tmp_path / 'gone'} is not a folder",
    ]
    text = Page(report.page).text
    for reason in report.unread:
        assert f"Not on this page: {reason}" in text
    assert re.search(r"\bgood\b", text)


HOSTILE = (
    "<script>alert(1)'\" onerror=alert(2) <svg onload=alert(3)> &lt; $title ${links} $\\frac{$"
)
CLOSING = f"</script></style></td></table></details>{HOSTILE}"


def test_a_run_made_by_someone_else_adds_no_element_and_no_attribute(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """Every text that a run brings would be markup to a browser, and a formula to matplotlib."""
    folder = make_run(HOSTILE, layers=1, updates=20)
    head = json.loads((folder / "monitor.json").read_text())
    head["architecture"] = head["embeddings"][0] = CLOSING
    head["options"]["optimization"]["max_update"] = CLOSING
    head["options"][CLOSING] = {CLOSING: [CLOSING]}
    for entry in (*head["attentions"], *head["matrices"]):
        entry["name"] = CLOSING
    (folder / "monitor.json").write_text(json.dumps(head))
    other = write_log(tmp_path / "other", 7.5)
    gone = tmp_path / f"gone {HOSTILE}"
    out = tmp_path / "out"
    assert main(["report", *map(str, (folder, other, gone)), "--out", str(out)]) == 0
    page = Page(out / "report.html")
    elements = (
        "html head meta title style body h1 h2 h3 nav a p div wbr table tr th td details summary "
        "figure img figcaption"
    )
    attributes = "lang charset name content class href id src alt"
    assert page.elements <= set(elements.split())
    assert page.attributes <= set(attributes.split())
    assert page.text.count(HOSTILE) > page.text.count(CLOSING) > 2


def test_nothing_to_draw_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError) as raised:
        write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert str(raised.value).splitlines() == [
        f"{tmp_path / name} is not a folder" for name in ("a", "b")
    ]
    assert not (tmp_path / "out").exists()
