"""`opensiglip data show`."""

from pathlib import Path
from typing import Annotated

import tyro

from opensiglip.data.sources.registry import with_box_format
from opensiglip.reports import contact_sheet


def show(
    source: Annotated[str, tyro.conf.Positional],
    out: Path | None = None,
    split: str = "train",
    languages: str | None = None,
    box_format: str | None = None,
) -> None:
    """What is in a source: counts, languages, lengths; and a contact sheet with boxes drawn.

    Args:
        source: `scenes`, `scenes:key=value,...` or a folder with metadata.jsonl.
        out: where to write the contact sheet, a PNG.
        split: train, val or test (scenes also have val_drawings).
        languages: all, or codes such as en or de,fr; by default all the source has.
        box_format: how a folder writes boxes: xyxy (corners, the default), xywh or cxcywh (centre, width, height), with
            -relative after it for shares of the image.
    """
    (spec,) = with_box_format([source], box_format)
    print(contact_sheet.show(spec, out, split, None if languages is None else languages.split(",")))
