"""`opensiglip data`: what is in a source, and sources written anew."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from opensiglip.data.fetch import Limits, fetch_list
from opensiglip.data.indexing import make_indexes
from opensiglip.data.parallel import default_workers
from opensiglip.data.sources.metadata import EXTRAS
from opensiglip.data.sources.registry import open_source, splits_of, with_box_format
from opensiglip.data.sources.spec import with_clean
from opensiglip.data.stats.collect import collect
from opensiglip.data.stats.counts import Wish
from opensiglip.data.text import TextPipeline
from opensiglip.data.writing import convert as writing
from opensiglip.errors import UserError
from opensiglip.reports import contact_sheet, data_page

Format = Literal["tar", "parquet", "folder"]
Clean = Literal["alt-text"]


def show(
    source: Annotated[str, tyro.conf.Positional],
    out: Path | None = None,
    split: str = "train",
    languages: str | None = None,
    box_format: str | None = None,
) -> None:
    """Show what a source contains: counts, languages, lengths, and a contact sheet with boxes.

    Args:
        source: `scenes`, `scenes:key=value,...` or another source, as for train's --data.
        out: PNG file for the contact sheet.
        split: train, val or test (scenes also have val_drawings).
        languages: all, or codes such as en or de,fr; by default all languages of the source.
        box_format: box format of a folder: xyxy (corners, the default), xywh or cxcywh (centre, width, height); with
            -relative, fractions of the image.
    """
    (spec,) = with_box_format([source], box_format)
    print(contact_sheet.show(spec, out, split, None if languages is None else languages.split(",")))


def stats(
    source: Annotated[str, tyro.conf.Positional],
    out: Path | None = None,
    split: str = "all",
    tokenizer: str | None = None,
    detect_languages: bool = False,
    duplicates: bool = True,
    sample: int | None = None,
    clean: Clean | None = None,
    box_format: str | None = None,
    workers: int | None = None,
) -> None:
    """Count what a source contains: sizes, lengths, languages, boxes, tokens, copies, and broken rows by reason.

    Args:
        source: a source, as for train's --data.
        out: folder for stats.json and stats.html, a page with plots and images.
        split: train, val or test; by default all splits, so that copies of held-out images in train are found.
        tokenizer: count the tokens of captions with it: a folder, a tokenizer.json or a hub id.
        detect_languages: also guess each caption's language (needs the extra `languages`).
        duplicates: compare images; without it, memory does not grow with the number of rows.
        sample: count only this many rows, evenly spread.
        clean: alt-text removes boilerplate from texts and counts the changes; see docs/how-to/data.md.
        box_format: box format of a folder, as in `data show`.
        workers: number of processes; by default one per CPU; 0 uses the current process only.
    """
    if sample is not None and sample < 1:
        raise UserError(f"--sample {sample} is out of range; give 1 or more.")
    (spec,) = with_box_format([with_clean(source, clean)], box_format)
    splits = splits_of(spec) if split == "all" else {split: open_source(spec, split=split)}
    pipeline = None if tokenizer is None else TextPipeline.load(tokenizer, 64)
    wish = Wish(pipeline, detect_languages, duplicates)
    found = collect(splits, wish, sample, default_workers() if workers is None else workers)
    print(data_page.as_text(found))
    if out is not None:
        data_page.write_page(out, source, found, splits)
        print(f"page: {out / 'stats.html'}\nfigures: {out / 'stats.json'}")


def fetch(
    source: Annotated[str, tyro.conf.Positional],
    out: Path,
    text: str | None = None,
    resize: int | None = None,
    quality: int = 90,
    rows_per_shard: int = 10_000,
    threads: int = 32,
    seconds: float = 10.0,
    megabytes: float = 20.0,
    retries: int = 2,
    private: bool = False,
) -> None:
    """Fetch the images of a CSV or TSV of links into tars, with their texts; dead links are counted, never fatal.

    After a kill, the same command continues.

    Args:
        source: a CSV or TSV with a header, a column `url` and a column of texts, such as `caption`.
        out: output folder, empty or from the same command.
        text: name of the column of texts, if it is not a usual one.
        resize: reduce the shorter side of larger images to this many pixels; all images are then encoded as JPEG.
        quality: JPEG quality with --resize.
        rows_per_shard: links per tar.
        threads: number of links fetched at a time.
        seconds: time limit of one attempt.
        megabytes: largest size of an image.
        retries: attempts after a link did not answer, with increasing pauses.
        private: also fetch from addresses of this machine and its own network.
    """
    limits, picture = Limits(seconds, megabytes, retries, private), writing.checked_picture(resize, quality)
    done = fetch_list(
        Path(source), out, rows_per_shard=rows_per_shard, threads=threads, picture=picture, limits=limits, text=text
    )
    print(writing.sentence(done, out))


def index(source: Annotated[str, tyro.conf.Positional], workers: int | None = None) -> None:
    """Index all tars of a source in parallel; tars with an index of their size and modification time are skipped.

    Args:
        source: a folder, glob, range or list of tars.
        workers: number of processes; by default one per CPU; 0 uses the current process only.
    """
    print(make_indexes(source, default_workers() if workers is None else workers))


def convert(
    source: Annotated[str, tyro.conf.Positional],
    out: Path,
    to: Format = "tar",
    shard_mb: float = 500,
    resize: int | None = None,
    quality: int = 90,
    clean: Clean | None = None,
    workers: int | None = None,
) -> None:
    """Convert a source to tars, parquet files or a folder: every split, all texts, boxes and columns.

    Shards are written in parallel and atomically. After a kill, the same command continues.

    Args:
        source: a source, as for train's --data.
        out: output folder, empty or from the same command.
        to: output format.
        shard_mb: approximate size of a shard in megabytes.
        resize: reduce the shorter side of larger images to this many pixels; all images are then encoded as JPEG. By
            default files are copied byte for byte.
        quality: JPEG quality with --resize.
        clean: alt-text removes boilerplate from texts and counts the changes; see docs/how-to/data.md.
        workers: number of processes; by default one per CPU; 0 uses the current process only.
    """
    spec = with_clean(source, clean)
    done = writing.convert(spec, out, to=to, shard_mb=shard_mb, resize=resize, quality=quality, workers=workers)
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
    """Convert a source with new splits drawn by a hash, which is the same on every machine and in any order.

    Args:
        source: a source, as for train's --data; all of its splits are read.
        out: output folder, empty or from the same command.
        val: fraction of the examples held out as val.
        test: fraction held out as test.
        by: value to hash, which determines what stays together: name (image_id if there is one), image (the file's
            bytes, so copies of an image share a split) or a column such as label, image_id or groups.
        to: output format.
        shard_mb: megabytes that a process reads at a time, all splits together.
        workers: number of processes; by default one per CPU; 0 uses the current process only.
    """
    draw = writing.check_draw(val, test, by, EXTRAS)
    done = writing.convert(source, out, to=to, shard_mb=shard_mb, workers=workers, draw=draw)
    print(writing.sentence(done, out))
    if not done.rows["val"] and val:
        raise UserError(f"no example fell to val; give a larger --val than {val}, or --by something finer.")
