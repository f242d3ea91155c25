"""What an initialisation was measured under: on which network, and after how many pre-trainings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ablate.report.grouping import FIELDS, INITIALISATION, Group, Grouping, Key, Value, field_label, plain, value_label
from ablate.report.roles import ROLE
from ablate.stats import ENOUGH_REPEATS, MOST_CLAIMS, tuned_claims

NETWORK_FIELDS: tuple[str, ...] = tuple(name for name in FIELDS if name.startswith("network_"))
"""The fields of a trial that make its network."""

ONE_NETWORK = (
    "Tests, ranks and the best in bold are within one network, since a difference to another may be the network's; "
    "--across-networks asks for all."
)

SINGLE = "¶"
"""Mark of an initialisation whose seeds all rest on one pre-training."""

SINGLE_NOTE = f"{SINGLE} all seeds rest on one and the same pre-training, whose variation no number here holds"


CONDITIONAL = (
    "Every statement about tuned arms is about the settings that were chosen: an independent tuning of the same arm "
    "chooses others, and seeds do not show that variation."
)
"""What a reader of a tuned comparison must know."""


def is_tuned(key: Key) -> bool:
    """Whether a row of a table is an initialisation with the settings that its tuning chose."""
    return (ROLE, "tuned") in key.variant


def claims_note(spec: Mapping[str, Any], num_seeds: int) -> str | None:
    """Return why differences of tuned arms are not marked; None where they may be.

    Args:
        spec: the section `tune` of the run's search space.
        num_seeds: the most seeds of an arm.
    """
    if int(spec.get("repeats", 1)) >= ENOUGH_REPEATS:
        return None
    budget = int(spec["budget"])
    share = tuned_claims(budget, num_seeds)
    if share <= MOST_CLAIMS:
        return None
    return (
        f"Differences of tuned arms have no p-value and no mark: of two equal arms, each tuned once with {budget} "
        f"configurations, {100 * share:.0f} % differed significantly at {num_seeds} seeds in simulated experiments. "
        f"tune.repeats: {ENOUGH_REPEATS} tunes each arm several times, and these tunings are the units then."
    )


def networks_of(grouping: Grouping, group: Group) -> dict[tuple[Key, Key], tuple[Value, ...]]:
    """Return what tells the network of each cell from others: the fields of its network, of all of its trials."""
    columns = (map(plain, grouping.trials[name]) for name in NETWORK_FIELDS)
    fields = list(zip(*columns, strict=True))
    found = {cell: list(dict.fromkeys(fields[p] for p in positions)) for cell, positions in group.cells.items()}
    return {cell: each[0] if len(each) == 1 else tuple(map(str, each)) for cell, each in found.items()}


def network_labels(networks: Iterable[tuple[Value, ...]]) -> dict[tuple[Value, ...], str]:
    """Return a name for each of several networks: the fields in which they differ, the kind alone if that does."""
    distinct = list(dict.fromkeys(networks))
    if len(distinct) < 2 or any(len(network) != len(NETWORK_FIELDS) for network in distinct):
        return {network: f"network {number}" for number, network in enumerate(distinct, 1)}
    differing = [i for i in range(len(NETWORK_FIELDS)) if len({network[i] for network in distinct}) > 1]
    telling = next((i for i in differing if len({network[i] for network in distinct}) == len(distinct)), None)
    shown = differing if telling is None else [telling]
    return {
        network: ", ".join(
            f"{field_label(NETWORK_FIELDS[i])} {value_label(NETWORK_FIELDS[i], network[i])}"
            for i in shown
            if network[i] is not None
        )
        for network in distinct
    }


def single_cells(grouping: Grouping, group: Group) -> list[tuple[Key, Key]]:
    """Return the cells of which all finished trials go back to one and the same pre-training."""
    keys = list(map(plain, grouping.trials["pretrain_key"]))
    finished = [str(status) == "finished" for status in grouping.trials["status"]]
    found = {cell: {keys[p] for p in positions if finished[p]} for cell, positions in group.cells.items()}
    return [cell for cell, each in found.items() if len(each) == 1 and None not in each]


def single_rows(grouping: Grouping, group: Group) -> tuple[Key, ...]:
    """Return the initialisations of which a cell rests on a single pre-training."""
    if grouping.rows != INITIALISATION:
        return ()
    return tuple(dict.fromkeys(row for row, _ in single_cells(grouping, group)))
