"""Average ranks of the initialisations over data sets and shots, and the tables that show them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ablate.report.analysis import Analysis, Panel
from ablate.report.grouping import INITIALISATION, Key, value_label
from ablate.report.render import Cell, Table, slug
from ablate.stats import RANKS_CAPTION, RankComparison, compare_ranks


@dataclass(frozen=True)
class Ranking:
    """Average ranks over the data sets and shots of panels that differ in their data set only."""

    title: str
    result: RankComparison
    methods: tuple[str, ...]  # of `result.names`
    stands_for: tuple[str, ...]  # which setting a method's name stands for, where it has several
    left_out: tuple[str, ...]  # initialisations that are not in every data set


def rankings(analysis: Analysis) -> Iterator[Ranking]:
    """Yield the average ranks over data sets and shots, apart for each combination of the other fields."""
    families: dict[tuple[object, ...], list[Panel]] = {}
    for panel in analysis.panels:
        others = tuple(item for item in panel.group.fixed if item[0] != "dataset")
        families.setdefault(others, []).append(panel)
    for panels in families.values():
        named = [_ranked_rows(panel) for panel in panels]
        names = [name for name in named[0] if all(name in other for other in named)]
        left_out = tuple(dict.fromkeys(name for other in named for name in other if name not in names))
        stands_for = tuple(
            f"{name} stands for {row.label(INITIALISATION)} on {panel.dataset}"
            for panel, rows in zip(panels, named, strict=True)
            for name, row in rows.items()
            if name in names and name != row.label(INITIALISATION)
        )
        blocks = []
        for panel, rows in zip(panels, named, strict=True):
            for column in panel.group.columns:
                arms = [panel.arms.get((rows[name], column)) for name in names]
                blocks.append([np.nan if arm is None or arm.mre.value is None else arm.mre.value for arm in arms])
        result = compare_ranks(names, np.array(blocks, np.float64)) if len(names) > 1 else None
        if result is not None:
            title = ", ".join(dict.fromkeys(panel.dataset for panel in panels))
            title = f"{title} ({panels[0].others})" if panels[0].others else title
            methods = tuple(str(named[0][name].value) for name in names)
            yield Ranking(title, result, methods, stands_for, left_out)


def _ranked_rows(panel: Panel) -> dict[str, Key]:
    """Return the initialisations to rank: of a method's settings the one that was run at the most shots.

    Where no setting was run at more shots than all others, each stands for itself.
    """
    rows: dict[str, Key] = {}
    for method in dict.fromkeys(row.value for row in panel.group.rows):
        settings = [row for row in panel.group.rows if row.value == method]
        counts = [len(panel.row_arms(row)) for row in settings]
        if counts.count(max(counts)) == 1:
            rows[value_label(INITIALISATION, method)] = settings[counts.index(max(counts))]
        else:
            rows |= {row.label(INITIALISATION): row for row in settings}
    return rows


def rank_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield average ranks with Friedman's test and Nemenyi's critical difference."""
    for ranking in rankings(analysis):
        result = ranking.result
        order = sorted(range(len(result.names)), key=lambda i: (result.average_ranks[i], result.names[i]))
        best = result.average_ranks[order[0]]
        rows, records = [], []
        for i in order:
            rank = result.average_ranks[i]
            near = rank - best <= result.critical_difference
            rows.append((Cell(result.names[i]), Cell(f"{rank:.2f}", rank, best=rank == best, tied=near)))
            records.append(
                {
                    "initialisation": result.names[i],
                    "average_rank": rank,
                    "blocks": result.num_blocks,
                    "critical_difference": result.critical_difference,
                    "p": result.p_value,
                    "test": result.test,
                }
            )
        test = "Friedman's test" if result.test == "friedman" else "sign test"
        notes = [
            f"{test}: p = {result.p_value:.3g}. Nemenyi critical difference at {result.alpha:g}: "
            f"{result.critical_difference:.2f}; † within it of the best.",
            RANKS_CAPTION,
        ]
        if result.num_incomplete:
            notes.append(f"{result.num_incomplete} blocks lack a result and are left out.")
        notes += [f"{text}." for text in ranking.stands_for]
        if ranking.left_out:
            notes.append(f"Not in every data set, left out: {', '.join(ranking.left_out)}.")
        yield Table(
            slug("ranks", ranking.title),
            f"Average rank by MRE over {result.num_blocks} blocks, each a data set at a number of shots (1 = best): "
            f"{ranking.title}.",
            ("initialisation", "average rank"),
            tuple(rows),
            tuple(records),
            tuple(notes),
        )
