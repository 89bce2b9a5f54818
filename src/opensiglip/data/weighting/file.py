"""The file of `--example-weights`: parquet with a column `weight`, a row for each row of a source's train split.

Its metadata may hold `opensiglip.fingerprint`, of the source that it was written for.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from opensiglip.data.example import Source
from opensiglip.data.fingerprint import fingerprint
from opensiglip.disk import refusals, whole_file
from opensiglip.errors import UserError, first_line

COLUMN = "weight"
FINGERPRINT = b"opensiglip.fingerprint"
MEANS = (0.01, 1000.0)  # of the weights that are not 0: outside, they are no numbers of times an epoch


def write_weights(file: Path, weights: NDArray[np.float64], source: Source) -> None:
    """Write the weights [rows of the source], whole or not at all. Raises UserError."""
    assert len(weights) == len(source), "a weight for each row"
    table = pa.table({COLUMN: weights.astype(np.float32)}, metadata={FINGERPRINT: fingerprint(source).encode()})
    with refusals(file, "name another file by --out"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as part:
            pq.write_table(table, part)


def read_weights(file: Path, source: Source) -> NDArray[np.float64]:
    """The weights [rows of the source]. Raises UserError where they are not of this source, or no weights at all."""
    flag = f"--example-weights {file}"
    if not file.is_file():
        raise UserError(
            f"{flag} is not a file; check the path, or write it with `opensiglip data balance` or `data dedup`."
        )
    try:
        with pq.ParquetFile(file) as opened:
            rows, noted = opened.metadata.num_rows, (opened.schema_arrow.metadata or {}).get(FINGERPRINT)
            if rows != len(source):
                raise UserError(
                    f"{flag} has {rows} rows, the train split of {source.name} {len(source)}; write it again for this "
                    "source and these --languages."
                )
            if noted not in (None, fingerprint(source).encode()):
                raise UserError(
                    f"{flag} was written for other examples than {source.name} has now; write it again for this source "
                    "and these --languages."
                )
            column = opened.read([COLUMN]).column(COLUMN)
            weights = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{flag} can't be read as parquet with a column `{COLUMN}` of numbers ({first_line(error)}); write it by "
            "`opensiglip data balance` or `data dedup`."
        ) from error
    if (bad := np.flatnonzero(~((weights >= 0) & np.isfinite(weights)))).size:
        raise UserError(f"{flag}: row {bad[0]} has the weight {weights[bad[0]]}; give finite numbers of 0 or more.")
    if not weights.any():
        raise UserError(f"{flag}: all weights are 0, so there is nothing to train on.")
    if not MEANS[0] <= (mean := float(weights[weights > 0].mean())) <= MEANS[1]:
        raise UserError(
            f"{flag}: weights that are not 0 are {mean:.3g} on average; a weight is how often an epoch has the row, so "
            "scale them to a mean of about 1."
        )
    return weights
