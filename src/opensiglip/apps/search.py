"""`opensiglip search-index` and `search`: a folder of images, embedded once, found by text or by image."""

import json as json_format
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from opensiglip.errors import UserError
from opensiglip.inference.index_folder import ROWS, IndexFolder, check, library
from opensiglip.inference.predictor import load

NAMED = 3  # files that can't be read


def search_index(
    model: Annotated[str, tyro.conf.Positional],
    folder: Annotated[str, tyro.conf.Positional],
    *,
    out: Path,
    dim: int | None = None,
) -> None:
    """Embed the images of a folder and its subfolders into an index for search.

    A repeated call continues after a stop, embeds new and changed files, and removes those that are gone.

    Args:
        model: a run, its model/ folder, or a hub id.
        folder: a folder of images.
        out: folder of the index.
        dim: length of the stored vectors, one of the widths that the model was trained with by --nested; by default the
            full width.
    """
    library()
    check(folder, out)
    began = time.perf_counter()

    def say(words: str) -> None:
        print(f"{time.perf_counter() - began:8.1f} s  {words}", flush=True)

    index = IndexFolder.build(load(model), folder, out, say, dim)
    say(f"{len(index.files)} images in {out}")
    if lost := [str(path.relative_to(index.about["folder"])) for path in index.unreadable]:
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        say(f"{len(lost)} can't be read: {', '.join(lost[:NAMED])}{more}; {out / ROWS} says why")


def search(
    index: Annotated[str, tyro.conf.Positional],
    text: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    *,
    image: Path | None = None,
    count: int = 8,
    model: str | None = None,
    json: bool = False,
) -> None:
    """Find the images of an index nearest to a text or an image; print cosine and file, nearest first.

    Args:
        index: a folder that `opensiglip search-index` wrote.
        text: text to search for.
        image: image to search for in place of a text.
        count: number of images to list.
        model: location of the model, if it has moved since the index was made.
        json: print JSON Lines; the score is the cosine.
    """
    if count < 1:
        raise UserError(f"--count {count} is out of range; give at least 1.")
    if not text and image is None:
        raise UserError("give a text to look for, or --image FILE.")
    if text and not "".join(text).strip():
        raise UserError("the text is empty; say what to look for, or give --image FILE.")
    opened = IndexFolder.open(index)
    there = opened.vectors.ntotal  # a damaged index is refused before the model is loaded
    try:
        predictor = load(model or opened.about["model"])
    except UserError as error:
        if model is not None:
            raise
        raise UserError(
            f"{str(error).rstrip('.')}; {index} was made with it: give --model, where it is now."
        ) from error
    if count > there:
        print(f"opensiglip: {index} has only {there} images, of --count {count}.", file=sys.stderr)
    if not json:
        print("  cosine  image")
    for hit in predictor.search(opened, " ".join(text) or None, image=image, count=count):
        found = {"image": str(hit.path), "score": round(hit.score, 4)}
        print(json_format.dumps(found, ensure_ascii=False) if json else f"{hit.score:8.4f}  {hit.path}")
