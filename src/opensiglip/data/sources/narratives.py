"""Localized Narratives' captions, of COCO, Flickr30k, ADE20K or Open Images: a JSON object a line."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from opensiglip.data.sources.folder import read_lines
from opensiglip.data.sources.records import Annotated, Record, find_root, first_name, read_records
from opensiglip.data.sources.shards import find_shards
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.split import split_in
from opensiglip.errors import UserError

MARK = b'"annotator_id"'
PLACES = ("", "images", "flickr30k-images", "train", "validation", "val", "test", "train2017", "val2017")


class Narratives(Annotated):
    """What people said of each image, all they said of one together. Traces of the mouse are no boxes: left out.

    Files named train, val or test are of that split.
    """

    def __init__(self, spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Raises UserError where a file can't be read, or no image is found."""
        files = find_shards(spec, ".jsonl")
        records = read_records("narratives", files, [], partial(parse, files))
        above = [files[0].resolve().parent, files[0].resolve().parent.parent]
        root = find_root(spec, first_name(records), [one / place for one in above for place in PLACES])
        super().__init__(spec, split, languages, records, root, "narratives")


def is_narratives(file: Path) -> bool:
    """Does a file of lines begin as Localized Narratives do?"""
    with file.open("rb") as opened:
        return MARK in opened.read(4096)


def parse(files: Sequence[Path], skipped: Counter[str]) -> Iterator[Record]:
    """A record an image. Raises UserError."""
    captions: dict[tuple[str, str | None], list[str]] = {}
    for file in files:
        split = split_in(file)
        try:
            for line in read_lines(file):
                found = read_line(line)
                if isinstance(found, str):
                    skipped[found] += 1
                else:
                    captions.setdefault((found[0], split), []).append(found[1])
        except OSError as error:
            raise UserError(f"{file} can't be read ({error.strerror}); name a file that can.") from None
    for (name, split), texts in captions.items():
        yield Record(name, split, {"captions": texts})


def read_line(line: bytes) -> tuple[str, str] | str:
    """Image and caption of a line, or why it has none. COCO's ids are numbers, its files have twelve digits."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "line is not JSON"
    if not isinstance(row, dict) or not isinstance(row.get("caption"), str):
        return "line without caption"
    image, data = row.get("image_id"), row.get("dataset_id")
    if not isinstance(image, str | int) or not isinstance(data, str):
        return "line without image_id or dataset_id"
    name = f"{int(image):012d}" if "coco" in data.lower() and str(image).isdecimal() and len(str(image)) < 13 else image
    return f"{name}.jpg", row["caption"]
