"""Published results that a run keeps: they are added, listed and removed, and read for its tables and figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from ablate.errors import InputError, nearest
from ablate.report.grouping import INITIALISATION, group_trials
from ablate.report.literature import File, Known, Reference, read_references, source_notes
from ablate.report.published import dataset_of
from ablate.report.run_data import RunData, read_trials
from ablate.store import Store
from ablate.store.layout import REFERENCES, reference_file
from ablate.store.run_file import read_run_file
from ablate.words import counted, one_line

_ENDING = ".csv"
_NAME = re.compile(r"\w[\w.+-]*")


def kept_names(store: Store) -> list[str]:
    """Return the names of the files of published results that a run keeps, sorted."""
    return [name.removesuffix(_ENDING) for name in store.list(REFERENCES) if name.endswith(_ENDING)]


def references_of(run: RunData, given: Path | None) -> tuple[Reference, ...]:
    """Return the published results that a run keeps, and those of a file that is given for the moment.

    Raises:
        InputError: a file cannot be read, or a line does not fit, see `read_references`; a row that the run keeps may
            not be given once more.
    """
    files = _kept(run.store, kept_names(run.store))
    if given is not None:
        files.append(_read(f"--reference {given}", given))
    return read_references(files, Known.of(run.trials, run.described))


def keep_reference(store: Store, path: Path) -> list[str]:
    """Keep a file of published results in a run, in place of one of the same name; return what was done, in lines.

    Args:
        store: the run, which may be under way.
        path: the CSV file, see `ablate.report.literature`; its name becomes that of the kept file.

    Raises:
        InputError: the file's name or a line does not fit, or a row stands in another kept file; nothing was written.
    """
    name = path.name[: -len(_ENDING)]
    if path.suffix.lower() != _ENDING or not _NAME.fullmatch(name):
        raise InputError(
            "FILE must be called NAME.csv, with a name of letters, digits, '.', '_', '+' and '-', under which the run "
            f"keeps it; got {path.name!r}: rename it"
        )
    file = _read(f"FILE {path}", path)
    names = kept_names(store)
    trials, known = _known(store)
    found = read_references([*_kept(store, [other for other in names if other != name]), file], known)
    store.write(reference_file(name), file.content)
    own = [one for one in found if one.file == file.place]
    done = "replaced" if name in names else "kept"
    return [f"{done} {store.label}/{reference_file(name)}: {counted(len(own), 'row')}", *_lines(own, trials)]


def reference_lines(store: Store) -> list[str]:
    """Return the files of published results that a run keeps, with their sources and protocols, as lines of text.

    Raises:
        InputError: a kept file was changed by hand and does not fit any more.
    """
    names = kept_names(store)
    files = _kept(store, names)
    if not files:
        return [f"{store.label}: keeps no published results; ablate reference add RUN FILE.csv keeps some beside it"]
    trials, known = _known(store)
    found = read_references(files, known)
    lines = []
    for name, file in zip(names, files, strict=True):
        own = [one for one in found if one.file == file.place]
        lines += [f"{name}: {counted(len(own), 'row')}", *_lines(own, trials)]
    return lines


def remove_reference(store: Store, name: str) -> str:
    """Delete a kept file of published results; return what was done.

    Raises:
        InputError: the run keeps none of this name.
    """
    names, wanted = kept_names(store), name.removesuffix(_ENDING)
    if not names:
        raise InputError(f"{store.label}: keeps no published results; got NAME {name!r}")
    if wanted not in names:
        raise InputError(
            f"NAME must be one of the published results that {store.label} keeps, {', '.join(names)}; got {name!r}"
            f"{nearest(wanted, names)}"
        )
    store.delete(reference_file(wanted))
    return f"removed {store.label}/{reference_file(wanted)}"


def _read(place: str, path: Path) -> File:
    try:
        return File(place, path.read_bytes())
    except OSError as error:
        raise InputError(f"{place}: must be a CSV file in UTF-8; {error}") from error


def _kept(store: Store, names: Sequence[str]) -> list[File]:
    places = [reference_file(name) for name in names]
    return [File(f"{store.label}/{place}", store.read(place)) for place in places]


def _known(store: Store) -> tuple[pd.DataFrame, Known]:
    trials = read_trials(store)
    return trials, Known.of(trials, read_run_file(store))


def _lines(references: Sequence[Reference], trials: pd.DataFrame) -> Iterator[str]:
    """Yield the sources of published rows, and of which initialisations tables show the difference to the run's own."""
    for note in source_notes(references):
        mark = note.partition(" ")[0]
        yield f"  {one_line(note)}: {counted(sum(one.mark == mark for one in references), 'row')}"
    grouping = group_trials(trials)
    rows = dict.fromkeys(
        (dataset_of(grouping, group), row.label(INITIALISATION)) for group in grouping.groups for row in group.rows
    )
    named = dict.fromkeys(one.initialisation for one in references if (one.dataset, one.initialisation) in rows)
    others = dict.fromkeys(one.initialisation for one in references if (one.dataset, one.initialisation) not in rows)
    if named:
        yield f"  compared with the run's rows of the same name: {one_line(', '.join(named))}"
    if others:
        own = ", ".join(dict.fromkeys(label for _, label in rows))
        yield f"  of other names than the run's rows ({one_line(own)}): {one_line(', '.join(others))}"
