"""A bench in tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ablate.bench.ceilings import ceiling_of
from ablate.schedule.bench_file import Bench, BenchRow, PretrainRow, StepTimes
from ablate.schedule.benched import best_processes, row_name

BUSY = 0.25
"""Share of the cores that other programs keep busy from which on figures are said to be of a busy machine."""


def bench_lines(bench: Bench) -> list[str]:
    """Return all that a bench measured, a line each."""
    device = bench.device
    lines = [
        f"{bench.grid} on {device.words}, {device.memory_bytes / 2**30:.0f} GiB; torch {bench.torch_version}; "
        f"{bench.seconds:.0f} s"
    ]
    if device.busy_cores > BUSY * device.cores:
        lines.append(
            f"  note: programs kept {device.busy_cores:.1f} of {device.cores} cores busy as it began; the figures are "
            "those of this machine with them"
        )
    lines += ["", *_ceilings(bench), "", *_steps(bench), "", *_epochs(bench), "", *_stages(bench), "", *_shared(bench)]
    if bench.left_out:
        lines += ["", "left out"]
        lines += [f"  {item.what}: {item.why}" for item in bench.left_out]
        lines.append("  more --minutes, or a --grid of fewer methods and networks, leaves less out")
    return lines


def _name(row: BenchRow) -> str:
    return row_name(row.trial, pretrains=isinstance(row, PretrainRow))


def _ceilings(bench: Bench) -> list[str]:
    rows = []
    for found in bench.ceilings:
        if found.unit == "B/s":
            rows.append((found.name, f"{found.size / 2**20:.0f} MiB", f"{found.value / 1e9:,.1f} GB/s"))
        else:
            rows.append((found.name, f"{found.size} x {found.size}", f"{found.value / 1e12:,.3f} TFLOP/s"))
    return _table(("ceiling", "of", "at most"), rows)


def _steps(bench: Bench) -> list[str]:
    most = {found.name: found.value for found in bench.ceilings}
    found = [(row, row.step) for row in bench.pretrain] + [(row, step) for row in bench.finetune for step in row.steps]
    rows = []
    for row, step in found:
        ceiling = most.get(ceiling_of(row.trial.precision, bench.device.kind))
        share = "-" if ceiling is None else f"{step.flops / step.seconds / ceiling:.0%}"
        memory = f"{step.peak_memory_bytes / 2**20:,.0f}"
        rows.append(
            (
                _name(row),
                str(step.images),
                _ms(step.seconds),
                f"{step.images / step.seconds:,.1f}",
                share,
                memory,
                *(_ms(seconds) for seconds in _where(step)),
            )
        )
    of = "operators" if bench.device.kind == "cpu" else "kernels"
    header = ("optimizer step", "images", "ms", "images/s", "of ceiling", "peak MiB", f"{of} ms", "sync ms", "host ms")
    return _table(header, rows)


def _where(step: StepTimes) -> tuple[float | None, ...]:
    return step.device_seconds, step.sync_seconds, step.host_seconds


def _epochs(bench: Bench) -> list[str]:
    rows = []
    for row in bench.finetune:
        if row.epoch is not None:
            epoch = row.epoch
            parts = (epoch.training, epoch.validation, epoch.copying, epoch.host)
            what = f"{_name(row)}; {epoch.shots} shots, {epoch.val_images} validate"
            rows.append(
                (
                    what,
                    _ms(epoch.seconds),
                    *(f"{_ms(part)} ({part / epoch.seconds:.0%})" for part in parts),
                    _ms(epoch.decoding),
                )
            )
    header = ("epoch", "ms", "training", "validation", "copying", "host", "decoding, at the end")
    return _table(header, rows)


def _stages(bench: Bench) -> list[str]:
    rows, both = [], list[BenchRow]([*bench.pretrain, *bench.finetune])
    for row in both:
        rest = "-" if row.rest_seconds is None else f"{row.rest_seconds:.2f}"
        kept = row.resumed
        words = ("-", "-", "-") if kept is None else (_equal(kept.equal), _equal(kept.equal_deterministic), "")
        if kept is not None:
            lacks = f", but for {', '.join(kept.not_deterministic)}" if kept.not_deterministic else ""
            words = (*words[:2], f"x {kept.slowdown:.2f}{lacks}")
        rows.append((_name(row), rest, *words))
    header = ("stage", "besides training s", "resumed = straight", "in deterministic mode", "its step")
    lines = _table(header, rows)
    return [*lines, f"  starting the processes of stages: {bench.process_seconds:.1f} s"]


def _equal(equal: bool) -> str:
    return "to the bit" if equal else "no"


def _shared(bench: Bench) -> list[str]:
    rows, both = [], list[BenchRow]([*bench.pretrain, *bench.finetune])
    every = [row for row in both if len(row.shared) > 1]
    counts = sorted({found.processes for row in every for found in row.shared})
    for row in every:
        known = {found.processes: f"{found.images_per_second:,.1f}" for found in row.shared}
        best = best_processes(row.shared)
        advice = f"{1 / best:g}" if bench.device.kind == "cuda" else str(best)
        rows.append((_name(row), *(known.get(count, "-") for count in counts), advice))
    use = "--gpus-per-finetune" if bench.device.kind == "cuda" else "best"
    return _table(("images/s of processes at once", *map(str, counts), use), rows)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:,.1f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return aligned lines, the first column to the left."""
    cells = [header, *rows]
    if len(cells) == 1:
        return [f"{header[0]}: nothing was measured"]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for number, row in enumerate(cells):
        first = f"{row[0]:<{widths[0] + 2 * (number == 0)}}"
        rest = "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append(("" if number == 0 else "  ") + first + rest)
    return lines
