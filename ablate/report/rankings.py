"""Average ranks of the initialisations over data sets and shots, and the tables that show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ablate.report.analysis import Analysis, Panel
from ablate.report.conditions import ONE_NETWORK, SINGLE, SINGLE_NOTE, network_labels
from ablate.report.grouping import INITIALISATION, Key, value_label
from ablate.report.render import Cell, Table, slug
from ablate.stats import BLOCKS_CAPTION, RANKS_CAPTION, RankComparison, compare_ranks
from ablate.words import counted


@dataclass(frozen=True)
class Ranking:
    """Average ranks over the data sets and shots of panels that differ in their data set only."""

    title: str
    result: RankComparison
    methods: tuple[str, ...]  # of `result.names`
    stands_for: tuple[str, ...]  # which setting a method's name stands for, where it has several
    left_out: tuple[str, ...]  # initialisations that are not in every data set
    single: tuple[str, ...]  # of `result.names`, what rests on a single pre-training
    notes: tuple[str, ...]  # what else differs between the initialisations, and what was not tested


def rankings(analysis: Analysis) -> Iterator[Ranking]:
    """Yield the average ranks over data sets and shots, apart for each combination of the other fields.

    Initialisations on different networks are ranked apart too, unless they are to be compared.
    """
    families: dict[tuple[object, ...], list[Panel]] = {}
    for panel in analysis.panels:
        others = tuple(item for item in panel.group.fixed if item[0] != "dataset")
        families.setdefault(others, []).append(panel)
    for panels in families.values():
        named = [_ranked_rows(panel) for panel in panels]
        common = [name for name in named[0] if all(name in other for other in named)]
        left_out = tuple(dict.fromkeys(name for other in named for name in other if name not in common))
        networks = {
            name: tuple(
                dict.fromkeys(
                    arm.network
                    for panel, rows in zip(panels, named, strict=True)
                    for arm in panel.row_arms(rows[name])
                    if not analysis.across_networks
                )
            )
            for name in common
        }
        labels = network_labels(network for found in networks.values() for network in found)
        for network in dict.fromkeys(networks.values()):
            names = [name for name in common if networks[name] == network]
            title = ", ".join(dict.fromkeys(panel.dataset for panel in panels))
            about = [panels[0].others] if panels[0].others else []
            about += [" and ".join(labels[one] for one in network)] if len(set(networks.values())) > 1 else []
            title = f"{title} ({', '.join(about)})" if about else title
            ranking = _ranking(title, panels, [{name: rows[name] for name in names} for rows in named], left_out)
            if ranking is not None:
                yield ranking


def _ranking(
    title: str, panels: Sequence[Panel], named: Sequence[Mapping[str, Key]], left_out: tuple[str, ...]
) -> Ranking | None:
    """Return the ranks of the initialisations that `named` has for each panel; None with fewer than two."""
    names = list(named[0])
    blocks, arms = [], []
    for panel, rows in zip(panels, named, strict=True):
        for column in panel.group.columns:
            found = [panel.arms.get((rows[name], column)) for name in names]
            blocks.append([np.nan if arm is None or arm.mre.value is None else arm.mre.value for arm in found])
            arms += [(name, arm) for name, arm in zip(names, found, strict=True) if arm is not None]
    tuned = any(panel.tuned_note for panel in panels)
    one_seed = any(arm.mre.num_seeds < 2 for _, arm in arms)
    result = (
        compare_ranks(names, np.array(blocks, np.float64), tested=not one_seed and not tuned)
        if len(names) > 1
        else None
    )
    if result is None:
        return None
    stands_for = tuple(
        f"{name} stands for {row.label(INITIALISATION)} on {panel.dataset}"
        for panel, rows in zip(panels, named, strict=True)
        for name, row in rows.items()
        if name != row.label(INITIALISATION)
    )
    notes = [note for panel in panels for note in panel.group.notes]
    if result.p_value is None:
        why = "a result behind the ranks is of one seed" if one_seed else "one block says nothing of others"
        why = "arms were tuned once" if tuned else why
        notes.insert(0, f"No test: {why}.")
    if any(panel.within_networks for panel in panels):
        notes.append(ONE_NETWORK)
    return Ranking(
        title,
        result,
        tuple(str(named[0][name].value) for name in names),
        stands_for,
        left_out,
        tuple(dict.fromkeys(name for name, arm in arms if arm.single)),
        tuple(dict.fromkeys(notes)),
    )


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
            name, rank = result.names[i], result.average_ranks[i]
            near = result.critical_difference is not None and rank - best <= result.critical_difference
            label = f"{name} {SINGLE}" if name in ranking.single else name
            rows.append((Cell(label, name), Cell(f"{rank:.2f}", rank, best=rank == best, tied=near)))
            records.append(
                {
                    "initialisation": name,
                    "average_rank": rank,
                    "blocks": result.num_blocks,
                    "critical_difference": result.critical_difference,
                    "p": result.p_value,
                    "test": result.test if result.p_value is not None else None,
                }
            )
        notes = []
        if result.p_value is not None and result.critical_difference is not None:
            test = "Friedman's test" if result.test == "friedman" else "sign test"
            notes.append(
                f"{test}: p = {result.p_value:.3g}. Nemenyi critical difference at {result.alpha:g}, over every two "
                f"of the {len(result.names)} initialisations: {result.critical_difference:.2f}; † within it of the "
                "best."
            )
            notes.append(BLOCKS_CAPTION)
        notes += [RANKS_CAPTION, *ranking.notes]
        notes += [SINGLE_NOTE] if ranking.single else []
        if result.num_incomplete:
            notes.append(f"{result.num_incomplete} blocks lack a result and are left out.")
        notes += [f"{text}." for text in ranking.stands_for]
        if ranking.left_out:
            notes.append(f"Not in every data set, left out: {', '.join(ranking.left_out)}.")
        yield Table(
            slug("ranks", ranking.title),
            f"Average rank by MRE over {counted(result.num_blocks, 'block')}, each a data set at a number of shots "
            f"(1 = best): {ranking.title}.",
            ("initialisation", "average rank"),
            tuple(rows),
            tuple(records),
            tuple(notes),
        )
