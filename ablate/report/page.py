"""How do tables, figures and radiographs become one HTML file that needs no network?

Everything that comes from data is escaped: as HTML where it is written here, as JSON that cannot end its script
where the page's script reads it, which sets it as text. A content security policy lets no script run but the three
that are meant to, and nothing be loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from ablate.report.charts import Chart
from ablate.report.grouping import MISSING
from ablate.report.interactive import chart_json
from ablate.report.render import Cell, Table, render_table
from ablate.report.run_data import RunData
from ablate.report.viewer import SHEET_BYTES, Gallery, data_uri
from ablate.words import one_line

STRIP_BYTES = 1_200_000
"""Of the page, for the pictures of DDPMs at work."""


@dataclass(frozen=True)
class Section:
    """Tables under one heading."""

    title: str
    tables: tuple[Table, ...]
    open: bool = False


def page(
    run: RunData,
    sections: Sequence[Section],
    figures: Mapping[str, Sequence[Chart]],
    gallery: Gallery,
    strips: Mapping[str, bytes],
    missing: Sequence[str],
    *,
    written_at: str,
) -> str:
    """Return the page.

    Args:
        run: the run it is about.
        sections: the tables.
        figures: charts by kind.
        gallery: radiographs and picture sheets.
        strips: pictures of DDPMs at work, JPEG, by the key of their pre-training.
        missing: what is not there, in sentences.
        written_at: the time, as text.
    """
    name = one_line(str(run.described.get("name") or "run"))
    tables = [table for section in sections for table in section.tables]
    data = {
        "latex": {table.name: render_table(table, "latex") for table in tables},
        "csv": {table.name: render_table(table, "csv") for table in tables},
        "figures": [
            {**chart_json(chart), "kind": kind} for kind, charts in figures.items() for chart in charts
        ],
        "viewer": gallery.viewer,
    }  # fmt: skip
    library = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    script, style = _asset("page.js"), _asset("page.css")
    policy = (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {_hash(library)} {_hash(script)}"
    )
    body = "\n".join(
        [
            _head(run, name, missing, written_at),
            _figures(figures),
            _viewer(gallery),
            _sheets(gallery),
            _strips(strips, run),
            *(_section(section) for section in sections),
        ]
    )
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(name)} · ablate report</title>\n<style>{style}</style></head>\n<body>\n"
        '<a class="skip" href="#tables">Skip to the tables</a>\n'
        f"<main>\n{body}\n</main>\n"
        f'<script type="application/json" id="data">{json_for_script(data)}</script>\n'
        f"<script>{library}</script>\n<script>{script}</script>\n</body></html>\n"
    )


def json_for_script(value: object) -> str:
    """Return JSON that can stand inside a script element whatever its texts hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: other letters are \\u escapes
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return (resources.files("ablate.report") / "assets" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _text(value: object) -> str:
    return escape(one_line(str(value)))


# --- the run's identity -----------------------------------------------------------------------------


def _head(run: RunData, name: str, missing: Sequence[str], written_at: str) -> str:
    described = run.described
    description = described.get("description")
    counts = {status: run.count(status) for status in ("finished", "failed", MISSING)}
    state = ", ".join(f"{number} {status}" for status, number in counts.items())
    facts = [("address", run.store.label), ("trials", state), ("report written", written_at), *_identity(run)]
    rows = "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in facts)
    lacking = "".join(f"<li>{_text(text)}</li>" for text in missing)
    return (
        f"<header><h1>{escape(name)}</h1>{f'<p>{_text(description)}</p>' if description else ''}"
        '<nav><a href="#figures">Figures</a> <a href="#viewer">Radiographs</a> <a href="#tables">Tables</a></nav>'
        "</header>\n"
        f'<section id="missing"><h2>What is missing</h2>{f"<ul>{lacking}</ul>" if lacking else "<p>Nothing.</p>"}'
        "</section>\n"
        f'<section id="run"><h2>The run</h2><dl>{rows}</dl>{_data_table(described)}</section>'
    )


def _identity(run: RunData) -> Iterator[tuple[str, object]]:
    """Yield what the run's file, or else its trials, say of versions and machines."""
    sessions = [session for session in run.described.get("sessions") or () if isinstance(session, Mapping)]
    if sessions:
        last = sessions[-1]
        yield "command", last.get("command", "")
        times = "once" if len(sessions) == 1 else f"{len(sessions)} times"
        yield "started", f"{sessions[0].get('started_at', '')}, {times} in all"
        for key in ("ablate", "git_revision", "python", "platform"):
            if last.get(key):
                yield key.replace("_", " "), last[key]
        versions = last.get("versions")
        if isinstance(versions, Mapping):
            yield "versions", ", ".join(f"{library} {version}" for library, version in versions.items())
    for column in ("ablate_version", "torch_version", "git_revision", "device"):
        values = sorted({str(value) for value in run.trials[column].dropna()})
        if values:
            yield f"{column.replace('_', ' ')} of the trials", ", ".join(values)


def _data_table(described: Mapping[str, Any]) -> str:
    data = described.get("data")
    if not isinstance(data, Mapping) or not data:
        return ""
    rows = []
    for name, facts in data.items():
        facts = facts if isinstance(facts, Mapping) else {}
        counts = facts.get("counts")
        parts = ", ".join(f"{split} {n}" for split, n in counts.items()) if isinstance(counts, Mapping) else ""
        twice = len(facts.get("duplicates") or ())
        told = (facts.get(key, "") for key in ("fingerprint", "unit", "num_landmarks"))
        values = (name, *told, parts, twice)
        rows.append("<tr>" + "".join(f"<td>{_text(value)}</td>" for value in values) + "</tr>")
    header = ("data set", "fingerprint", "unit", "landmarks", "images", "test images also in train or val")
    return (
        '<div class="scroll"><table><thead><tr>'
        + "".join(f'<th scope="col">{name}</th>' for name in header)
        + f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


# --- figures, radiographs, tables -------------------------------------------------------------------


def _figures(figures: Mapping[str, Sequence[Chart]]) -> str:
    cards = "".join(
        f'<figure class="card" data-figure="{escape(chart.name)}"><figcaption><b>{escape(kind)}</b>: '
        f'{_text(chart.title)}. {_text(chart.note)}</figcaption><div class="plot" role="img" '
        f'aria-label="{_text(kind)}: {_text(chart.title)}"></div></figure>'
        for kind, charts in figures.items()
        for chart in charts
    )
    return f'<section id="figures"><h2>Figures</h2><div class="cards">{cards or "<p>None yet.</p>"}</div></section>'


def _viewer(gallery: Gallery) -> str:
    remarks = "".join(f"<p>{_text(text)}.</p>" for text in gallery.remarks)
    if not gallery.viewer["comparisons"]:
        return f'<section id="viewer"><h2>Radiographs</h2><p>None yet.</p>{remarks}</section>'
    return (
        '<section id="viewer"><h2>Radiographs</h2>'
        '<div id="view" tabindex="0" role="group" aria-label="Radiograph viewer; arrow keys step through images and '
        'shots, L switches landmarks">'
        '<div class="controls">'
        '<label>comparison <select id="v-comparison"></select></label>'
        '<label>shots <select id="v-shots"></select></label>'
        '<label>order <select id="v-order"><option value="name">by name</option>'
        '<option value="worst">worst first</option></select></label>'
        '<label>image <select id="v-image"></select></label>'
        '<span><button type="button" id="v-previous" aria-label="previous image">←</button>'
        '<button type="button" id="v-next" aria-label="next image">→</button></span>'
        '<label><input type="checkbox" id="v-landmarks" checked> landmarks</label>'
        '</div><fieldset id="v-rows"><legend>initialisations</legend></fieldset>'
        '<p id="v-status" aria-live="polite"></p><div id="v-panes"></div></div>'
        '<p class="hint"><span class="truth">○</span> truth <span class="prediction">●</span> prediction. Keys: ← → '
        "image, ↑ ↓ shots, L landmarks. Each picture shows one trained network, that of the lowest seed.</p>"
        f"{remarks}</section>"
    )


def _sheets(gallery: Gallery) -> str:
    used = 0
    figures: list[str] = []
    for sheet in gallery.sheets:
        used += len(sheet.jpeg)
        if used > SHEET_BYTES:
            figures.append("<p>More sheets are in the folder pictures/ of this report.</p>")
            break
        told = "; ".join(f"{case}: {image}" for case, image in sheet.cases.items())
        figures.append(
            '<figure><div class="wide" tabindex="0" role="region" aria-label="picture sheet"><img loading="lazy" '
            f'alt="Worst, median and best case: {_text(sheet.title)}" src="{data_uri(sheet.jpeg, "jpeg")}"></div>'
            f"<figcaption>{_text(sheet.title)}: worst, median and best test image "
            f"by MRE over all initialisations, lowest seed shown ({_text(told)}).</figcaption></figure>"
        )
    return f'<section id="cases"><h2>Worst, median and best</h2>{"".join(figures)}</section>' if figures else ""


def _strips(strips: Mapping[str, bytes], run: RunData) -> str:
    if not strips:
        return ""
    used = 0
    parts: list[str] = []
    trials = run.trials.drop_duplicates("pretrain_key").set_index("pretrain_key")
    for key, jpeg in strips.items():
        used += len(jpeg)
        if used > STRIP_BYTES:
            parts.append(f"<p>{len(strips) - len(parts)} more are in the run's folder pictures/ddpm.</p>")
            break
        about = key
        if key in trials.index:
            row = trials.loc[key]
            about = f"{row['pretrain_dataset']}, {row['pretrain_timesteps']} timesteps ({key})"
        parts.append(
            f'<figure><img loading="lazy" alt="Noising and sampling of {_text(about)}" src="{data_uri(jpeg, "jpeg")}">'
            f"<figcaption>DDPM pre-trained on {_text(about)}: a radiograph as noise is added, and pictures as they are "
            "sampled from noise.</figcaption></figure>"
        )
    return f'<section id="ddpm"><h2>What the DDPMs learnt</h2>{"".join(parts)}</section>'


def _section(section: Section) -> str:
    tables = "".join(_table(table) for table in section.tables)
    anchor = ' id="tables"' if section.open else ""
    return (
        f"<section{anchor}><details{' open' if section.open else ''}><summary><h2>{_text(section.title)}</h2></summary>"
        f"{tables}</details></section>"
    )


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"><button type="button" class="sort" data-column="{number}">{_text(name)}</button></th>'
        for number, name in enumerate(table.header)
    )
    body = "".join(
        f"<tr>{''.join(_cell(cell, number < table.text_columns) for number, cell in enumerate(row))}</tr>"
        for row in table.rows
    )
    notes = "".join(f"<p>{_text(note)}</p>" for note in table.notes)
    name = escape(table.name)
    return (
        f'<article class="table" id="table-{name}" data-table="{name}"><h3>{_text(table.caption)}</h3>'
        '<div class="controls"><label>filter rows <input type="search" class="filter"></label>'
        '<button type="button" class="copy" data-form="latex">Copy LaTeX</button>'
        '<button type="button" class="copy" data-form="csv">Copy CSV</button>'
        '<span class="copied" role="status"></span></div>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(table.caption)}"><table><thead><tr>{head}'
        f'</tr></thead><tbody>{body}</tbody></table></div><div class="notes">{notes}</div></article>'
    )


def _cell(cell: Cell, is_name: bool) -> str:
    value = "" if cell.value is None else f' data-value="{_text(cell.value)}"'
    text = _text(cell.text)
    text = f"<b>{text}</b>" if cell.best else f"{text} †" if cell.tied else text
    return f"<td{' class=name' if is_name else ''}{value}>{text}</td>"
