"""Memory stays flat however many examples are read: make torture COUNT=100000 reads so many of each kind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_sources_tables import pictures, write_parquet
from test_sources_tar import samples, write

from benchmarks.measure import resident
from opensiglip.data.sources.registry import open_source

FIRST, FEW, GROWTH = 1000, 3000, 40e6  # examples, examples, bytes


@pytest.mark.parametrize("kind", ["tar", "parquet", "folder"])
def test_memory_is_as_much_after_many_examples_as_after_a_thousand(
    kind: str, tmp_path: Path, torture_count: Callable[[int], int]
) -> None:
    if kind == "tar":
        for shard in range(5):
            write(tmp_path / f"{shard}.tar", samples(100, 100 * shard))
    elif kind == "parquet":
        write_parquet(tmp_path / "0.parquet", 0, 500)
    else:
        rows = [{"file_name": name, "caption": name, "split": "train"} for name in pictures(tmp_path, 500)]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source, before = open_source(str(tmp_path)), 0.0
    count = max(FEW, torture_count(FEW))
    for number in range(count):
        source.example(number * 7919 % len(source))
        if number == FIRST:
            before = resident()
    after = resident()
    print(f"{kind}: {before / 1e6:.0f} MB at {FIRST:,} examples, {after / 1e6:.0f} MB at {count:,}")
    assert after - before < GROWTH
