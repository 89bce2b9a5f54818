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
    """Count all that a source holds: sizes, lengths, languages, boxes, tokens, copies, and broken rows by reason.

    Args:
        source: any that --data of train takes.
        out: a folder for stats.json and stats.html, a page with plots and pictures.
        split: train, val or test; by default all that there are, so that copies of held-out images in train are found.
        tokenizer: count the tokens of captions by it: a folder, a tokenizer.json or a hub id.
        detect_languages: guess each caption's language too (needs the extra `languages`).
        duplicates: compare images; without, memory does not grow with the rows at all.
        sample: count so many rows only, evenly spread.
        clean: alt-text takes out of texts what is no description, and counts it; see docs/how-to/data.md.
        box_format: how a folder writes boxes, as `data show` has it.
        workers: processes; by default one a CPU, 0 for this one alone.
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

    The same command goes on where a killed one ended.

    Args:
        source: a CSV or TSV with a header; a column `url` and one of texts, such as `caption`.
        out: the folder to write to, empty or of the same command.
        text: the column of texts, where it has another name.
        resize: pixels of an image's shorter side, for those that are larger; all are then encoded as JPEG.
        quality: of the JPEGs that --resize makes.
        rows_per_shard: links of a tar.
        threads: links fetched at a time.
        seconds: that one try may take.
        megabytes: that an image may have.
        retries: after a link that did not answer, with longer and longer waits.
        private: fetch from addresses of this machine and its own network too.
    """
    limits, picture = Limits(seconds, megabytes, retries, private), writing.checked_picture(resize, quality)
    done = fetch_list(
        Path(source), out, rows_per_shard=rows_per_shard, threads=threads, picture=picture, limits=limits, text=text
    )
    print(writing.sentence(done, out))


def index(source: Annotated[str, tyro.conf.Positional], workers: int | None = None) -> None:
    """Index all tars of a source at once, in parallel; those that have an index of their size and time are passed over.

    Args:
        source: a folder, glob, range or list of tars.
        workers: processes; by default one a CPU, 0 for this one alone.
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
        clean: alt-text takes out of texts what is no description, and counts it; see docs/how-to/data.md.
        workers: processes; by default one a CPU, 0 for this one alone.
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
