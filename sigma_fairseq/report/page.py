"""The report: one HTML page that holds everything, and its figures as PNG files beside it."""

import base64
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

from sigma_fairseq.report.attention import draw_bound, draw_entropy
from sigma_fairseq.report.runs import Run, RunError, load_run
from sigma_fairseq.report.series import Sampled
from sigma_fairseq.report.style import Drawn, figure_style, line_styles
from sigma_fairseq.report.table import compare, distinct_names, shared_options
from sigma_fairseq.report.weights import draw_gradients, draw_loss, draw_spectral_norms

#: More records than these are not told apart in a figure, and no more are read for one.
MOST_RECORDS = 400

_SECTIONS: dict[str, Callable[[Sequence[Sampled], Path], Iterator[Drawn]]] = {
    "Loss": draw_loss,
    "Attention entropy": draw_entropy,
    "Entropy and its bound": draw_bound,
    "Spectral norms": draw_spectral_norms,
    "Gradients, updates, embeddings": draw_gradients,
}

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
nav a { margin-right: 1rem; white-space: nowrap; } a { color: #0b57a4; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #ddd; }
td { font-variant-numeric: tabular-nums; overflow-wrap: break-word; min-width: 4rem; }
th:first-child { min-width: 8rem; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { display: block; width: 100%; min-width: 36rem; height: auto; }
figcaption { max-width: 45rem; color: #444; font-size: .9rem; }
.unread { border-left: 4px solid #d55e00; padding-left: .8rem; }
summary { cursor: pointer; margin: 1rem 0; }
@media print { body { max-width: none; font-size: 11px; } nav { display: none; }
  figure img { min-width: 0; } h2, h3 { break-after: avoid; } }
</style>
</head>
<body>
<h1>$title</h1>
$unread
<nav>$links</nav>
<h2 id="runs">Runs</h2>
$runs
$sections
</body>
</html>
""")


class Report(NamedTuple):
    """What has been written.

    Attributes:
        page: the HTML file.
        unread: why a folder is not on the page, a line each.
    """

    page: Path
    unread: list[str]


def write_report(folders: Sequence[Path], out: Path) -> Report:
    """Draws runs on one page, `out`/report.html.

    Args:
        folders: the save directories of trainings; see `load_run`.
        out: where to, made if it is not there. Files of these names are replaced.

    Raises:
        RunError: none of the folders can be read; a line for each.
    """
    runs, unread = _load(folders)
    if not runs:
        raise RunError("\n".join(unread))
    out.mkdir(parents=True, exist_ok=True)
    names = distinct_names([run.folder for run in runs])
    sampled = [
        Sampled(run, name, run.sample(MOST_RECORDS), style)
        for run, name, style in zip(runs, names, line_styles(len(runs)), strict=True)
    ]
    with figure_style():
        sections = {title: list(draw(sampled, out)) for title, draw in _SECTIONS.items()}
    page = out / "report.html"
    page.write_text(_page(names, runs, sections, unread), encoding="utf-8")
    return Report(page, unread)


def _load(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    runs, unread = [], []
    for folder in {folder.resolve(): folder for folder in folders}.values():
        try:
            runs.append(load_run(folder))
        except RunError as error:
            unread.append(str(error))
    return runs, unread


def _page(
    names: Sequence[str],
    runs: Sequence[Run],
    sections: dict[str, list[Drawn]],
    unread: Sequence[str],
) -> str:
    drawn = {title: figures for title, figures in sections.items() if figures}
    missing = [title.lower() for title, figures in sections.items() if not figures]
    links = {"Runs": "runs", **{title: _anchor(title) for title in drawn}}
    texts = [f"<p>Not recorded by any of these runs: {', '.join(missing)}.</p>"] if missing else []
    return _PAGE.substitute(
        title=escape(names[0] if len(names) == 1 else f"{len(names)} runs"),
        unread="\n".join(
            f'<p class="unread">Not on this page: {escape(reason)}</p>' for reason in unread
        ),
        links="\n".join(f'<a href="#{anchor}">{title}</a>' for title, anchor in links.items()),
        runs=_runs_table(names, runs) + _shared_table(runs),
        sections="\n".join([*(_section(*section) for section in drawn.items()), *texts]),
    )


def _runs_table(names: Sequence[str], runs: Sequence[Run]) -> str:
    titles, rows = compare(runs)
    lines = ["".join(f"<td>{_breakable(cell)}</td>" for cell in row) for row in rows]
    body = "\n".join(
        f"<tr><th>{_breakable(name)}</th>{line}</tr>"
        for name, line in zip(names, lines, strict=True)
    )
    head = "".join(f"<th>{_breakable(title)}</th>" for title in ("run", *titles))
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>\n'


def _shared_table(runs: Sequence[Run]) -> str:
    options = shared_options(runs)
    if not options:
        return "<p>No run has recorded its options.</p>"
    summary = f"{len(options)} options" + (" are the same in all runs" if len(runs) > 1 else "")
    rows = "\n".join(
        f"<tr><td>{_breakable(key)}</td><td>{_breakable(value)}</td></tr>"
        for key, value in options.items()
    )
    return (
        f'<details><summary>{summary}</summary>\n<div class="wide"><table>\n{rows}\n'
        "</table></div></details>"
    )


def _section(title: str, figures: Sequence[Drawn]) -> str:
    parts = [f'<h2 id="{_anchor(title)}">{title}</h2>']
    for figure in figures:
        image = base64.b64encode(figure.file.read_bytes()).decode("ascii")
        parts.append(
            f"<figure>\n<h3>{escape(figure.title)}</h3>\n"
            f'<div class="wide"><img src="data:image/png;base64,{image}" '
            f'alt="{escape(figure.title)}"></div>\n'
            f"<figcaption>{escape(figure.caption)}</figcaption>\n</figure>"
        )
    return "\n".join(parts)


def _anchor(title: str) -> str:
    return title.lower().replace(",", "").replace(" ", "-")


def _breakable(text: str) -> str:
    """Lets a browser break long names where words in them end."""
    escaped = escape(text)
    for mark in "_/.":
        escaped = escaped.replace(mark, f"{mark}<wbr>")
    return escaped
