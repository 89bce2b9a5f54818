"""Crossmodal-3600: retrieval among 3,600 images in each of 36 languages, and its mean over the languages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opensiglip.data.sources.metadata import MAX_LINE
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmarks.retrieval import retrieval
from opensiglip.evaluation.protocols.protocol import How, Judged, find_file, judge_source, listed
from opensiglip.inference.predictor import Predictor

DOWNLOAD = "captions and images are at https://google.github.io/crossmodal-3600/"


def xm3600(model: Predictor, folder: Path, how: How) -> dict[str, Judged]:
    """R@1, 5, 10 of each language by itself, over all images with a caption in it; then their means."""
    file = find_file(folder, ["captions.jsonl", "captions/captions.jsonl"], DOWNLOAD)
    source = listed(str(folder), list(rows(file)), [folder / "images", folder], DOWNLOAD)
    return {"retrieval": judge_source(model, source, retrieval, how, tokens=False)}


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """A line {"image/key": KEY, LANGUAGE: {"caption": [...]}, ...} as a row of metadata.jsonl. Raises UserError."""
    try:
        with file.open(encoding="utf-8") as lines:
            while line := lines.readline(MAX_LINE):
                if line.strip():
                    yield _row(json.loads(line))
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise UserError(f"{file} can't be read ({error}); {DOWNLOAD}.") from None


def _row(stored: Any) -> dict[str, Any]:
    if not isinstance(stored, dict) or not isinstance(stored.get("image/key"), str):
        raise ValueError("a line has no image/key")
    captions = [
        {"lang": language, "text": text}
        for language, texts in stored.items()
        if isinstance(texts, dict) and isinstance(texts.get("caption"), list)
        for text in texts["caption"]
    ]
    return {"file_name": f"{stored['image/key']}.jpg", "captions_i18n": captions}
