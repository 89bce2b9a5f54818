"""A model's answers as a dataset that FiftyOne opens: `samples.json`, as the version 1.22 of it reads samples.

`fiftyone.Dataset.from_dir(DIR, dataset_type=fiftyone.types.FiftyOneDataset)` takes a folder without `metadata.json` for
serialized samples (`LegacyFiftyOneDatasetImporter`): no schema, no database and no version stand in it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opensiglip.data.example import Box
from opensiglip.disk import unwritten
from opensiglip.errors import UserError
from opensiglip.inference.answers import Answer, Found

FILE = "samples.json"


def check_folder(folder: Path) -> None:
    """Raise UserError unless the folder is new, empty or of an earlier export."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--fiftyone {folder} is a file; name a folder to write {FILE} to.")
    if folder.is_dir() and (other := next((path.name for path in folder.iterdir() if path.name != FILE), None)):
        raise UserError(f"--fiftyone {folder} holds {other}; name a new folder, which FiftyOne reads as one dataset.")


def sample(path: Path, width: int, height: int, answers: Mapping[str, Any]) -> dict[str, Any]:
    """One image: a field for each question, in FiftyOne's labels; `width`, `height` in pixels.

    Captions are strings, `classify` is Classifications, places are Detections or Polylines in shares of the image.
    """
    fields: dict[str, Any] = {}
    for question, answer in answers.items():
        if question == "caption":
            fields[question] = answer
        elif question == "classify":
            shares = [label("Classification", label=name, confidence=share) for name, share in answer.items()]
            fields[question] = label("Classifications", classifications=shares)
        elif isinstance(answer, Answer):
            fields[question] = answer.text
            if answer.outline:
                points = [[x / width, y / height] for x, y in answer.outline]
                outline = label("Polyline", label=answer.text, points=[points], closed=True, filled=False)
                fields[f"{question}_outline"] = label("Polylines", polylines=[outline])
            elif answer.boxes:
                found = [detection(name, box, width, height) for name, box in answer.boxes]
                fields[f"{question}_boxes"] = label("Detections", detections=found)
        else:
            found = [located(one, width, height) for one in (answer if isinstance(answer, list) else [answer])]
            fields[question] = label("Detections", detections=[one for one in found if one])
    size = label("ImageMetadata", width=width, height=height)
    return {"filepath": str(path.resolve()), "tags": [], "metadata": size, "_media_type": "image", **fields}


def located(found: Found | Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    """A phrase or a described box as a Detection; empty where the box could not be described."""
    if isinstance(found, Found):
        return detection(found.phrase, found.box, width, height) | {"confidence": found.score}
    return detection(found["text"], found["box"], width, height) if "text" in found else {}


def detection(name: str, box: Sequence[float] | Box, width: int, height: int) -> dict[str, Any]:
    """A box of pixels as x, y, width and height in shares of the image."""
    x1, y1, x2, y2 = box
    shares = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
    return label("Detection", label=name, bounding_box=shares)


def label(kind: str, **fields: Any) -> dict[str, Any]:
    """A document of FiftyOne's class of that name."""
    return {"_cls": kind, **fields}


def write(samples: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write the samples. Raises UserError if they can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"samples": list(samples)}, allow_nan=False)
        (folder / FILE).write_text(text, encoding="ascii")
    except OSError as error:
        raise unwritten(folder, error, "--fiftyone") from None
