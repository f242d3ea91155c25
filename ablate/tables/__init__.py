"""The tables of a run: their schemas, a trial's fields as columns, and the Parquet files that hold them.

Whoever writes or reads results uses this room; it knows search spaces and the store, and needs no torch.
"""

from ablate.tables.columns import spec_columns, trial_of_row
from ablate.tables.comparison import compare
from ablate.tables.parts import (
    Filters,
    Row,
    commit_trial,
    finished_trials,
    part_path,
    read_frame,
    read_part,
    read_table,
    stage_part,
    unreadable_parts,
    write_rows,
)
from ablate.tables.schemas import KEYS, SCHEMA_VERSION, TABLES, VOLATILE, blank

__all__ = [
    "KEYS",
    "SCHEMA_VERSION",
    "TABLES",
    "VOLATILE",
    "Filters",
    "Row",
    "blank",
    "commit_trial",
    "compare",
    "finished_trials",
    "part_path",
    "read_frame",
    "read_part",
    "read_table",
    "spec_columns",
    "stage_part",
    "trial_of_row",
    "unreadable_parts",
    "write_rows",
]
