"""The tables of a run: their schemas, a trial's fields as columns, and the Parquet files that hold them.

Whoever writes or reads results uses this room; it knows search spaces and the store, and needs no torch.
"""

from ablate.tables.columns import (
    BASELINE_KEY,
    baseline_columns,
    baseline_part,
    field_columns,
    shots_number,
    shots_of_number,
    spec_columns,
    trial_of_row,
)
from ablate.tables.comparison import RESULTS, unequal
from ablate.tables.parts import (
    Filters,
    Row,
    commit_trial,
    frame_of,
    part_path,
    read_frame,
    read_part,
    read_table,
    stage_part,
    trial_status,
    write_rows,
)
from ablate.tables.schemas import PROVENANCE, SCHEMA_VERSION, TABLES, VOLATILE, blank

__all__ = [
    "BASELINE_KEY",
    "PROVENANCE",
    "RESULTS",
    "SCHEMA_VERSION",
    "TABLES",
    "VOLATILE",
    "Filters",
    "Row",
    "baseline_columns",
    "baseline_part",
    "blank",
    "commit_trial",
    "field_columns",
    "frame_of",
    "part_path",
    "read_frame",
    "read_part",
    "read_table",
    "shots_number",
    "shots_of_number",
    "spec_columns",
    "stage_part",
    "trial_of_row",
    "trial_status",
    "unequal",
    "write_rows",
]
