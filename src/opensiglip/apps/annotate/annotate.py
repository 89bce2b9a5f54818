"""`opensiglip annotate`: boxes for one's own photos, from an open-vocabulary detector asked for their texts' n-grams.

The pipeline of OWL-ST and LocCa (recipes.md, 3.2): what it writes is a source with regions, to look at and train on.
"""

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import write_png

from opensiglip.apps.annotate.choose import Limits, as_columns, choose
from opensiglip.apps.annotate.detector import TEMPLATES, Detector, load_detector
from opensiglip.apps.annotate.ledger import Ledger
from opensiglip.apps.annotate.queries import MOST, ask_for, read_categories
from opensiglip.data.example import Example, Source, reason_of
from opensiglip.data.sources.folder import Folder
from opensiglip.data.sources.metadata import EXTRAS
from opensiglip.data.sources.registry import open_source
from opensiglip.errors import UserError
from opensiglip.progress import progress
from opensiglip.reports.contact_sheet import show

SPLITS = ("train", "val", "test")
NOTHING = "no caption, and nothing found"


@dataclass(frozen=True)
class Batch:
    """Examples at fixed places of a split, ready for the detector; the broken ones by place, with the reason."""

    split: str
    examples: dict[int, Example]
    broken: dict[int, str]
    prepared: dict[str, Tensor]


class Batches(Dataset[Batch]):
    """Item i is the i-th batch of the splits, laid end to end. Which examples stand together never changes."""

    def __init__(self, sources: dict[str, Source], size: int, limit: int | None, images: Any) -> None:
        """`images`: the detector's image processor."""
        self.sources, self.images = sources, images
        self.places: list[tuple[str, range]] = []
        for split, source in sources.items():
            count = len(source) if limit is None else min(limit, len(source))
            self.places += [(split, range(at, min(at + size, len(source)))) for at in range(0, count, size)]

    def __getitem__(self, number: int) -> Batch:
        split, places = self.places[number]
        examples: dict[int, Example] = {}
        broken: dict[int, str] = {}
        for place in places:
            try:
                examples[place] = self.sources[split].example(place)
            except Exception as error:
                broken[place] = reason_of(error)
        pixels = [example.image for example in examples.values()]
        return Batch(split, examples, broken, dict(self.images(pixels, return_tensors="pt")) if pixels else {})


def annotate(
    source: Annotated[str, tyro.conf.Positional],
    *,
    out: Path,
    detector: str = "google/owlv2-base-patch16-ensemble",
    categories: str = "coco",
    threshold: float = 0.3,
    overlap: float = 0.5,
    boxes: int = 20,
    queries: int = MOST,
    limit: int | None = None,
    batch_size: int = 4,
    workers: int = 2,
    device: str = "auto",
) -> None:
    """Annotate a source's images with boxes and phrases from an open-vocabulary detector. Resumes after a stop.

    Args:
        source: a folder with metadata.jsonl, or `scenes:key=value,...`.
        out: output folder: images, metadata.jsonl with regions, a contact sheet.
        detector: hub id or folder of an OWL-ViT, OWLv2 or Grounding DINO model.
        categories: names to look for on every image, besides the n-grams of its texts: coco, none, or a file with one
            name per line.
        threshold: lowest score of a box.
        overlap: intersection over union above which only the better of two boxes is kept.
        boxes: largest number of boxes per image.
        queries: largest number of n-grams per image.
        limit: annotate only this many examples of each split, in whole batches; a later command continues with more.
        batch_size: batch size of the detector.
        workers: number of processes that read images.
        device: auto, cpu, cuda, cuda:1, ...
    """
    if not (0 < threshold < 1 and 0 < overlap <= 1):
        raise UserError(f"--threshold {threshold} and --overlap {overlap} are shares; give numbers between 0 and 1.")
    if min(boxes, queries, batch_size, 1 if limit is None else limit) < 1 or workers < 0:
        raise UserError("--boxes, --queries, --limit and --batch-size are at least 1, --workers at least 0.")
    sources, names = open_splits(source), read_categories(categories)
    if source_folder(sources) == out.resolve():
        raise UserError(f"--out {out} is the source itself; name another folder.")
    limits = Limits(threshold, overlap, boxes)
    ledger = Ledger(out, settings(source, detector, names, limits, queries, batch_size))
    began, before = time.perf_counter(), len(ledger.done)
    batches = Batches(sources, batch_size, limit, None)
    if left := to_do(batches, ledger):
        model = load_detector(detector, choose_device(device))
        batches.images = model.images
        for batch in progress(read(batches, left, workers), total=len(left), unit="batch"):
            ledger.add(*annotated(batch, sources[batch.split], model, names, queries, limits, out))
    print(summary(ledger, out))
    seconds = time.perf_counter() - began
    print(f"\nthis time: {len(ledger.done) - before} images in {seconds:.0f} s")


def open_splits(spec: str) -> dict[str, Source]:
    """The source's splits by name. Raises UserError if it has none."""
    found: dict[str, Source] = {}
    missing: UserError | None = None
    for split in SPLITS:
        try:
            found[split] = open_source(spec, split=split)
        except UserError as error:
            missing = missing or error
    if not found and missing is not None:
        raise missing
    return found


def source_folder(sources: dict[str, Source]) -> Path | None:
    """Where a folder's rows lie; None where images are drawn."""
    first = next(iter(sources.values()))
    return Path(first.name).expanduser().resolve() if isinstance(first, Folder) else None


def settings(
    source: str, detector: str, categories: Sequence[str], limits: Limits, queries: int, batch_size: int
) -> dict[str, Any]:
    """All that a region depends on: what `annotation.json` holds, and a run that goes on must share."""
    return {
        "source": source,
        "detector": detector,
        "templates": list(TEMPLATES),
        "categories": len(categories),
        "categories_sha256": hashlib.sha256("\n".join(categories).encode()).hexdigest(),
        "queries": queries,
        **asdict(limits),
        "batch_size": batch_size,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto": the GPU if there is one. Raises UserError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros((), device=name).device
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} can't be used ({reason}); give auto, cpu or cuda.") from None


def to_do(batches: Batches, ledger: Ledger) -> list[int]:
    """The batches that are not yet done to the last example."""
    return [
        number
        for number, (split, places) in enumerate(batches.places)
        if any((split, place) not in ledger.done for place in places)
    ]


def read(batches: Batches, numbers: Sequence[int], workers: int) -> Iterator[Batch]:
    """Those batches in order, read ahead by `workers` processes (0: by this one)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            worker_init_fn=one_thread if workers else None,
        )
    )


def one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def annotated(
    batch: Batch,
    source: Source,
    model: Detector,
    categories: Sequence[str],
    queries: int,
    limits: Limits,
    out: Path,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a batch, their images placed in the folder; and what has no row, with the reason."""
    examples = list(batch.examples.values())
    asked = [ask_for([c.text for c in e.captions if c.language == "en"], categories, queries) for e in examples]
    sizes = [(int(example.image.shape[1]), int(example.image.shape[2])) for example in examples]
    try:
        wanted = [[query.text for query in some] or [""] for some in asked]
        found = model.detect(batch.prepared, sizes, wanted) if examples else []
    except torch.cuda.OutOfMemoryError:
        raise UserError("the GPU ran out of memory; lower --batch-size, or give --device cpu.") from None
    rows: list[dict[str, Any]] = []
    left_out = [{"split": batch.split, "row": place, "reason": reason} for place, reason in batch.broken.items()]
    for place, example, some, size, seen in zip(batch.examples, examples, asked, sizes, found, strict=True):
        boxes = choose(seen.boxes, seen.scores, some, size, example.regions, limits)
        columns = texts(example) | extras(source, example) | {"regions": as_columns(boxes, example.regions)}
        if not any(columns.values()):
            left_out.append({"split": batch.split, "row": place, "reason": NOTHING})
            continue
        head = {"file_name": place_image(source, place, example, batch.split, out), "split": batch.split, "row": place}
        rows.append(head | {"width": size[1], "height": size[0]} | columns)
    return rows, left_out


def extras(source: Source, example: Example) -> dict[str, Any]:
    """The optional columns of a folder's row, whose meaning annotation does not touch."""
    if not isinstance(source, Folder):
        return {}  # a scene's are arrays
    return {name: example.extras[name] for name in EXTRAS if name in example.extras}


def texts(example: Example) -> dict[str, Any]:
    """The columns of captions, of every language and source."""
    captions = [{"lang": c.language, "text": c.text, "source": c.source} for c in example.captions]
    columns: dict[str, Any] = {"captions_i18n": captions}
    if synthetic := example.extras.get("captions_synthetic"):
        columns |= {"captions_synthetic": [c.text for c in synthetic], "lang": synthetic[0].language}
    return columns


def place_image(source: Source, place: int, example: Example, split: str, out: Path) -> str:
    """Put the example's image below the folder; returns where. Files are linked where the disk allows, else copied."""
    if isinstance(source, Folder):
        name, original = f"images/{example.name}", source.path(place).resolve()
    else:
        name, original = f"images/{split}-{place:07d}.png", None
    path = out / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(path.name + ".part")
        half.unlink(missing_ok=True)
        if original is None:
            write_png(example.image, str(half))
        else:
            try:
                os.link(original, half)
            except OSError:  # another disk, or one without links
                shutil.copyfile(original, half)
        half.rename(path)
    return name


def summary(ledger: Ledger, out: Path) -> str:
    """What stands in the folder now, in words; draws the contact sheet. Raises UserError if there is nothing."""
    reasons = Counter(entry["reason"] for entry in ledger.left_out)
    said = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common()) or "none"
    if not ledger.rows:
        raise UserError(f"nothing could be annotated (left out: {said}); `opensiglip data show` looks at the source.")
    regions = [region for row in ledger.rows for region in row["regions"]]
    sources = Counter(region.get("source", "given") for region in regions)
    lines = [
        f"images: {len(ledger.rows)}, of them with regions {sum(bool(row['regions']) for row in ledger.rows)}",
        f"regions: {len(regions)} (" + (", ".join(f"{n} {s}" for s, n in sources.most_common()) or "none") + ")",
        f"left out: {said}",
        "",
        show(str(out), out / "sheet.png", split=ledger.rows[0]["split"]),
    ]
    return "\n".join(lines)
