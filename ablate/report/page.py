"""The page: tables, figures and radiographs in one HTML file that needs no network.

Everything that comes from data is escaped: Jinja2 escapes what the template shows, and writes the data of the page's
script as JSON that cannot end its script element; the script sets texts as text. A content security policy lets no
script run but the three that are meant to, and nothing be loaded from anywhere.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ablate.report.answer import Answer
from ablate.report.chart_kinds import Chart
from ablate.report.grouping import MISSING
from ablate.report.interactive import chart_json
from ablate.report.render import Table, render_table
from ablate.report.run_data import RunData
from ablate.report.viewer import SHEET_BYTES, Gallery, data_uri
from ablate.words import one_line

STRIP_BYTES = 1_200_000
"""Most bytes of the page for the pictures of DDPMs at work."""


@dataclass(frozen=True)
class Section:
    """Tables under one heading."""

    title: str
    tables: tuple[Table, ...]
    open: bool = False


def page(
    run: RunData,
    answers: Sequence[Answer],
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
        answers: what it says, first of all.
        sections: the tables.
        figures: charts by kind.
        gallery: radiographs and picture sheets.
        strips: pictures of DDPMs at work, JPEG, by the key of their pre-training.
        missing: what is not there, in sentences.
        written_at: the time, as text.

    Raises:
        ValueError: a number of a chart or of the viewer is NaN or infinite.
    """
    tables = [table for section in sections for table in section.tables]
    charts = [(kind, chart) for kind, found in figures.items() for chart in found]
    library = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    script = _asset("page.js")
    counts = ", ".join(f"{run.count(status)} {status}" for status in ("finished", "failed", MISSING))
    sheets = _within([sheet.jpeg for sheet in gallery.sheets], SHEET_BYTES)
    shown_strips = _within(list(strips.values()), STRIP_BYTES)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            policy=(
                "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
                f"script-src {_hash(library)} {_hash(script)}"
            ),
            name=one_line(run.described.get("name") or "run"),
            description=run.described.get("description"),
            missing=missing,
            answers=answers,
            main=[section for section in sections if section.open],
            facts=[
                ("address", run.store.label),
                ("trials", counts),
                ("report written", written_at),
                *_identity(run),
            ],
            datasets=_datasets(run.described),
            figures=charts,
            gallery=gallery,
            sheets=gallery.sheets[:sheets],
            more_sheets=len(gallery.sheets) - sheets,
            strips=[(_about(key, run), jpeg) for key, jpeg in list(strips.items())[:shown_strips]],
            more_strips=len(strips) - shown_strips,
            sections=[section for section in sections if not section.open],
            style=_asset("page.css"),
            script=script,
            library=library,
            data={
                "latex": {table.name: render_table(table, "latex") for table in tables},
                "csv": {table.name: render_table(table, "csv") for table in tables},
                "figures": [{**chart_json(chart), "kind": kind} for kind, chart in charts],
                "viewer": gallery.viewer,
            },
        )
    )


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ablate.report", "assets"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["jpeg_uri"] = functools.partial(data_uri, kind="jpeg")
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _shown(value: object) -> object:
    """Return a value as the page shows it: in one line, unless it is marked as safe."""
    return value if hasattr(value, "__html__") else one_line(value)


def _asset(name: str) -> str:
    return (resources.files("ablate.report") / "assets" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _within(pictures: Sequence[bytes], budget_bytes: int) -> int:
    """Return how many of the pictures, from the first on, fit into the budget."""
    used = 0
    for number, picture in enumerate(pictures):
        used += len(picture)
        if used > budget_bytes:
            return number
    return len(pictures)


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


def _datasets(described: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """Return what the run's file says of each data set, as rows of a table."""
    data = described.get("data")
    rows: list[tuple[object, ...]] = []
    for name, facts in data.items() if isinstance(data, Mapping) else ():
        facts = facts if isinstance(facts, Mapping) else {}
        counts = facts.get("counts")
        parts = ", ".join(f"{split} {n}" for split, n in counts.items()) if isinstance(counts, Mapping) else ""
        if "folds" in facts:
            parts += f" in the first of {facts['folds']} folds"
        identity = (facts.get(key, "") for key in ("fingerprint", "unit", "num_landmarks"))
        rows.append((name, *identity, parts, len(facts.get("duplicates") or ())))
    return rows


def _about(key: str, run: RunData) -> str:
    """Return in words which pre-training a key stands for."""
    found = run.trials[run.trials["pretrain_key"] == key]
    if not len(found):
        return key
    row = found.iloc[0]
    return f"{row['pretrain_dataset']}, {row['pretrain_timesteps']} timesteps ({key})"
