"""An index on disk: what a query over so many vectors takes, against one product in memory."""

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measure import Variant, compare, positive, start
from benchmarks.report import report
from opensiglip.inference.index_folder import ABOUT, ROWS, VECTORS, IndexFolder, write_vectors
from opensiglip.inference.index_rows import File, write_rows
from opensiglip.inference.search import Index
from opensiglip.json_file import write_json


def bench(
    vectors: int = 100_000,
    width: int = 768,
    queries: int = 10,
    rounds: int = 5,
    out: Path = Path("runs/bench"),
) -> None:
    """Queries over an index of random unit vectors, with faiss from disk and with one matrix product in memory.

    Args:
        vectors: number of vectors in the index.
        width: length of a vector.
        queries: queries per measurement.
        rounds: measurements of each variant, taken in turn; the median is reported.
        out: folder for the JSON and the plot.
    """
    positive(vectors=vectors, width=width, queries=queries, rounds=rounds)
    place = start("cpu")
    import faiss

    faiss.omp_set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    table = F.normalize(torch.randn(vectors, width, generator=random), dim=-1)
    asked = F.normalize(torch.randn(queries, width, generator=random), dim=-1)
    files = [File(f"{number:07d}.jpg", 1, 1) for number in range(vectors)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_rows(path / ROWS, dict(zip(files, table.numpy(), strict=True)), width)
        write_vectors(path / VECTORS, np.ascontiguousarray(table.numpy()))
        write_json(path / ABOUT, {"folder": "/photos", "model": "random", "probe": [0.0] * width})
        disk = IndexFolder.open(path)
        memory = Index([Path("/photos", file.path) for file in files], table)
        for query in asked:
            same = [hit.path for hit in disk.nearest(query, 8)] == [hit.path for hit in memory.nearest(query, 8)]
            assert same, "the two indexes find other images"
        variants = [
            Variant("opensiglip search", lambda: [disk.nearest(query, 8) for query in asked], items=queries),
            Variant("product in memory", lambda: [memory.nearest(query, 8) for query in asked], items=queries),
        ]
        case = f"{queries} queries, {vectors} x {width}"
        rows = compare(case, variants, "product in memory", place, rounds, torch.float32)
    report("search", rows, out, place)
    print(f"a query takes {rows[0].seconds / queries * 1e3:.1f} ms of CPU, on one thread")
