"""Error rates and files that scripts/speech_scores.py makes of fairseq-generate's output."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "speech_scores.py"
REFERENCES = ["the cat sat", "a dog", "don't stop now", "yes"]
HYPOTHESES = ["the cat sat on", "a dog", "stop know", ""]
MANIFEST_HEADER = "id\taudio\tn_frames\ttgt_text\tspeaker\n"


def write_manifest(path: Path, references: list[str]) -> Path:
    lines = [
        f"{7 + row % 2}-1-{row:04}\tx.flac\t100\t{text}\t{7 + row % 2}\n"
        for row, text in enumerate(references)
    ]
    path.write_text(MANIFEST_HEADER + "".join(lines))
    return path


def write_generated(path: Path, hypotheses: dict[int, list[str]], score: str) -> Path:
    """What fairseq-generate writes, the utterances in the order of `hypotheses`."""
    lines = ["2026-01-01 | INFO | fairseq_cli.generate | {'_name': None}"]
    for row, texts in hypotheses.items():
        lines.append(f"T-{row}\tsome text")
        for rank, text in enumerate(texts):
            letters = " ".join(text.replace(" ", "|"))
            lines += [f"H-{row}\t-{rank}.5\t{letters}", f"D-{row}\t-{rank}.5\t{text}", f"P-{row}\t"]
    lines.append("2026-01-01 | INFO | fairseq_cli.generate | Translated 4 sentences")
    path.write_text("\n".join(lines) + f"\nGenerate test with beam=5: {score}\n")
    return path


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    return result


def edits(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein's distance."""
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, start=1):
        above, row = row, [i]
        for j, found in enumerate(hypothesis, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (wanted != found)))
    return row[-1]


@pytest.fixture
def scored(tmp_path: Path) -> tuple[Path, str]:
    """The folder of a run over `HYPOTHESES` and what it printed."""
    order = [2, 0, 3, 1]  # fairseq's is by length
    generated = write_generated(
        tmp_path / "generated", {row: [HYPOTHESES[row]] for row in order}, "WER: 44.44"
    )
    manifest = write_manifest(tmp_path / "manifest", REFERENCES)
    result = run("--split", "dev", generated, manifest, tmp_path)
    return tmp_path, result.stdout


def test_error_rates_counted_by_hand(scored: tuple[Path, str]) -> None:
    folder, printed = scored
    scores = json.loads((folder / "scores.json").read_text())["dev"]
    # on inserted, don't and yes deleted, now for know
    assert scores["utterances"] == 4
    assert scores["wer"] == {
        "percent": pytest.approx(100 * 4 / 9),
        "substitutions": 1,
        "deletions": 2,
        "insertions": 1,
        "length": 9,
    }
    # " on" inserted, "don't " and "yes" deleted, "k" inserted
    assert scores["cer"] == {
        "percent": pytest.approx(100 * 13 / 33),
        "substitutions": 0,
        "deletions": 9,
        "insertions": 4,
        "length": 33,
    }
    assert "dev (4 utterances)" in printed
    assert "WER   44.44 %  of 9: 1 substitutions, 2 deletions, 1 insertions" in printed
    assert "CER   39.39 %  of 33: 0 substitutions, 9 deletions, 4 insertions" in printed


def test_files_are_in_the_manifests_order(scored: tuple[Path, str]) -> None:
    folder, _ = scored
    assert (folder / "dev.tsv").read_text() == (
        "id\treference\thypothesis\terrors\n"
        "7-1-0000\tthe cat sat\tthe cat sat on\t1\n"
        "8-1-0001\ta dog\ta dog\t0\n"
        "7-1-0002\tdon't stop now\tstop know\t2\n"
        "8-1-0003\tyes\t\t1\n"
    )
    assert (folder / "dev.hyp.trn").read_text() == (
        "the cat sat on (7-7-1-0000)\na dog (8-8-1-0001)\nstop know (7-7-1-0002)\n (8-8-1-0003)\n"
    )
    references = (folder / "dev.ref.trn").read_text().splitlines()
    assert references[3] == "yes (8-8-1-0003)"
    assert not (folder / "dev.nbest.tsv").exists()


def test_against_levenshteins_distance_on_random_text(tmp_path: Path) -> None:
    draw = random.Random(5)
    texts = [
        [
            " ".join(draw.choices(["on", "no", "one", "none"], k=draw.randint(1, 8)))
            for _ in range(2)
        ]
        for _ in range(40)
    ]
    references, hypotheses = zip(*texts, strict=True)
    errors = [edits(r.split(), h.split()) for r, h in texts]
    wer = 100 * sum(errors) / sum(len(text.split()) for text in references)
    cer = 100 * sum(edits(list(r), list(h)) for r, h in texts) / len("".join(references))
    generated = write_generated(
        tmp_path / "generated",
        {row: [text] for row, text in enumerate(hypotheses)},
        f"WER: {wer:.2f}",
    )
    manifest = write_manifest(tmp_path / "manifest", list(references))
    run("--split", "a", generated, manifest, "--split", "b", generated, manifest, tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["a"] == scores["b"]
    assert scores["a"]["wer"]["percent"] == pytest.approx(wer)
    assert scores["a"]["cer"]["percent"] == pytest.approx(cer)
    rows = (tmp_path / "a.tsv").read_text().splitlines()[1:]
    assert [int(row.split("\t")[3]) for row in rows] == errors


def test_nbest_lists(tmp_path: Path) -> None:
    hypotheses = {1: ["a dog", "dog"], 0: ["the cat"]}
    generated = write_generated(tmp_path / "generated", hypotheses, "WER: 20.00")
    manifest = write_manifest(tmp_path / "manifest", REFERENCES[:2])
    run("--split", "dev", generated, manifest, tmp_path)
    assert (tmp_path / "dev.nbest.tsv").read_text() == (
        "id\trank\tscore\thypothesis\n"
        "7-1-0000\t1\t-0.5\tthe cat\n"
        "8-1-0001\t1\t-0.5\ta dog\n"
        "8-1-0001\t2\t-1.5\tdog\n"
    )


@pytest.mark.parametrize(
    ("rows", "score", "message"),
    [
        ([0, 2], "WER: 44.44", "2 of 4 have no hypothesis: 8-1-0001, 8-1-0003"),
        ([0, 1, 2, 3, 4], "WER: 44.44", "5 hypotheses for 4 utterances"),
        ([0, 1, 2, 3], "WER: 44.40", "fairseq found a WER of 44.40 %, but against"),
        ([0, 1, 2, 3], "BLEU4 = 12.00, 1/2/3/4", "generate with --scoring wer"),
    ],
)
def test_incomplete_output_has_no_error_rate(
    tmp_path: Path, rows: list[int], score: str, message: str
) -> None:
    hypotheses = {row: [[*HYPOTHESES, "more"][row]] for row in rows}
    generated = write_generated(tmp_path / "generated", hypotheses, score)
    manifest = write_manifest(tmp_path / "manifest", REFERENCES)
    result = run("--split", "dev", generated, manifest, tmp_path, code=1)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "scores.json").exists() and not (tmp_path / "dev.tsv").exists()


def test_many_missing_utterances_are_not_all_named(tmp_path: Path) -> None:
    generated = write_generated(tmp_path / "generated", {0: ["yes"]}, "WER: 0.00")
    manifest = write_manifest(tmp_path / "manifest", ["yes"] * 20)
    error = run("--split", "dev", generated, manifest, tmp_path, code=1).stderr
    assert "19 of 20" in error and error.endswith("7-1-0004, 8-1-0005, ...\n")


def test_bad_files(tmp_path: Path) -> None:
    generated = write_generated(tmp_path / "generated", {0: ["yes"]}, "WER: 0.00")
    manifest = write_manifest(tmp_path / "manifest", ["yes"])
    assert "No such file" in run("--split", "x", tmp_path / "0", manifest, tmp_path, code=1).stderr
    manifest.write_text(MANIFEST_HEADER)
    assert "no utterances" in run("--split", "x", generated, manifest, tmp_path, code=1).stderr
    manifest.write_text("id\ttgt_text\n1\tyes\n")
    assert "no column speaker" in run("--split", "x", generated, manifest, tmp_path, code=1).stderr
    write_manifest(manifest, ["yes"])
    generated.write_text("D-0\t-0.5\tyes\n")
    assert "did not finish" in run("--split", "x", generated, manifest, tmp_path, code=1).stderr
