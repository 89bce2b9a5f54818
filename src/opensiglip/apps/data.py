"""`opensiglip data`: what is in a source, and sources written anew."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from opensiglip.data.indexing import make_indexes
from opensiglip.data.sources.metadata import EXTRAS
from opensiglip.data.sources.registry import with_box_format
from opensiglip.data.writing import convert as writing
from opensiglip.errors import UserError
from opensiglip.reports import contact_sheet

Format = Literal["tar", "parquet", "folder"]


def show(
    source: Annotated[str, tyro.conf.Positional],
    out: Path | None = None,
    split: str = "train",
    languages: str | None = None,
    box_format: str | None = None,
) -> None:
    """What is in a source: counts, languages, lengths; and a contact sheet with boxes drawn.

    Args:
        source: `scenes`, `scenes:key=value,...` or any other that --data of train takes.
        out: where to write the contact sheet, a PNG.
        split: train, val or test (scenes also have val_drawings).
        languages: all, or codes such as en or de,fr; by default all the source has.
        box_format: how a folder writes boxes: xyxy (corners, the default), xywh or cxcywh (centre, width, height), with
            -relative after it for shares of the image.
    """
    (spec,) = with_box_format([source], box_format)
    print(contact_sheet.show(spec, out, split, None if languages is None else languages.split(",")))


def index(source: Annotated[str, tyro.conf.Positional], workers: int | None = None) -> None:
    """Index all tars of a source at once, in parallel; those that have an index of their size and time are passed over.

    Args:
        source: a folder, glob, range or list of tars.
        workers: processes; by default one a CPU, 0 for this one alone.
    """
    print(make_indexes(source, writing.default_workers() if workers is None else workers))


def convert(
    source: Annotated[str, tyro.conf.Positional],
    out: Path,
    to: Format = "tar",
    shard_mb: float = 500,
    resize: int | None = None,
    quality: int = 90,
    workers: int | None = None,
) -> None:
    """Write a source anew as tars, parquet files or a folder: every split, all texts, boxes and columns.

    Shards are written in parallel, each whole or not at all; the same command goes on where a killed one ended.

    Args:
        source: any that --data of train takes.
        out: the folder to write to, empty or of the same command.
        to: the format.
        shard_mb: megabytes of a shard, roughly.
        resize: pixels of an image's shorter side, for those that are larger; all are then encoded as JPEG. By default
            files are copied byte for byte.
        quality: of the JPEGs that --resize makes.
        workers: processes; by default one a CPU, 0 for this one alone.
    """
    done = writing.convert(source, out, to=to, shard_mb=shard_mb, resize=resize, quality=quality, workers=workers)
    print(writing.sentence(done, out))


def split(
    source: Annotated[str, tyro.conf.Positional],
    out: Path,
    val: float = 0.02,
    test: float = 0.0,
    by: str = "name",
    to: Format = "tar",
    shard_mb: float = 500,
    workers: int | None = None,
) -> None:
    """Write a source anew with other splits, drawn by a hash: the same for ever, on every machine, in any order.

    Args:
        source: any that --data of train takes; all of its splits are read.
        out: the folder to write to, empty or of the same command.
        val: share of the examples held out as val.
        test: share held out as test.
        by: what is hashed, so what stays together: name (image_id where there is one), image (the file's bytes, so that
            copies of an image are of one split) or a column such as label, image_id or groups.
        to: the format.
        shard_mb: megabytes of what a process reads at a time, all splits together.
        workers: processes; by default one a CPU, 0 for this one alone.
    """
    draw = writing.check_draw(val, test, by, EXTRAS)
    done = writing.convert(source, out, to=to, shard_mb=shard_mb, workers=workers, draw=draw)
    print(writing.sentence(done, out))
    if not done.rows["val"] and val:
        raise UserError(f"no example fell to val; give a larger --val than {val}, or --by something finer.")
