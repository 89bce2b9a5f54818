"""`opensiglip predict`: a model's answers about image files, as text, as JSON, or drawn on them."""

import json as json_format
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image
from torch import Tensor

from opensiglip.data.example import Caption, Example, Region
from opensiglip.disk import unwritten
from opensiglip.errors import UserError
from opensiglip.inference.answers import Found
from opensiglip.inference.capabilities import require
from opensiglip.inference.encoder import IMAGES
from opensiglip.inference.images import find_files, load_image
from opensiglip.inference.predictor import Predictor, load
from opensiglip.reports import fiftyone as fiftyone_samples
from opensiglip.reports.contact_sheet import COLUMNS, draw_cell
from opensiglip.reports.drawing import draw_outline
from opensiglip.reports.probability import probability_text

PICTURES = 64  # drawn on one sheet

Question = Callable[[list[Tensor]], Sequence[Any]]  # put to a batch of images


@dataclass
class ImageAnswers:
    """The answers about one image, by question."""

    path: Path
    image: Tensor
    answers: dict[str, Any] = field(default_factory=dict)


def predict(
    model: Annotated[str, tyro.conf.Positional],
    images: Annotated[tuple[str, ...], tyro.conf.Positional],
    *,
    caption: bool = False,
    language: str | None = None,
    rerank: str | None = None,
    locate: str | None = None,
    describe: str | None = None,
    classify: str | None = None,
    propose: bool = False,
    ask: str | None = None,
    json: bool = False,
    save: Path | None = None,
    fiftyone: Path | None = None,
) -> None:
    """Ask a model about image files; without a question it writes a caption.

    Args:
        model: a run, its model/ folder, or a hub id.
        images: files, folders, or quoted patterns.
        caption: write a caption.
        language: language of the caption, such as de; for models trained with "caption LANGUAGE" prefixes.
        rerank: a model with a text tower, such as a run of align, which chooses among eight captions.
        locate: find the box of this phrase.
        describe: describe the box X1,Y1,X2,Y2, in pixels of the image.
        classify: labels separated by commas, such as "a fox,a red apple"; gives the probability of each.
        propose: propose phrases with boxes.
        ask: a question in the form of a task that the model was trained on, such as "answer en is there a fox?".
        json: print JSON Lines, one object per image.
        save: PNG file for the images with boxes and captions drawn on them.
        fiftyone: folder for the answers as samples that FiftyOne opens.
    """
    if not images:
        raise UserError("name an image file to ask about, a folder of them, or a pattern in quotes.")
    if save is not None and save.suffix.lower() != ".png":
        raise UserError(f"--save writes a PNG: {save} should end in .png.")
    if fiftyone is not None:
        fiftyone_samples.check_folder(fiftyone)
    box = None if describe is None else read_box(describe)
    labels = [label.strip() for label in (classify or "").split(",") if label.strip()]
    if classify is not None and not labels:
        raise UserError("--classify has no label; give some separated by commas.")
    if locate is not None and not locate.strip():
        raise UserError("--locate is empty; give a phrase.")
    files, predictor = find_files(images), load(model)
    questions: dict[str, Question] = {}
    if caption or language is not None or rerank is not None or not (locate or box or labels or propose or ask):
        judge = None if rerank is None else load(rerank)
        questions["caption"] = partial(predictor.caption, language=language, rerank=judge)
    if labels:
        questions["classify"] = partial(predictor.classify, labels=labels)
    if locate is not None:
        questions["locate"] = partial(predictor.locate, phrase=locate)
    if propose:
        questions["propose"] = predictor.propose
    if ask is not None:
        questions["ask"] = partial(predictor.ask, question=ask)
    if box is not None:
        require(predictor.pretrained, "describe a box", ("gcap",))
        questions["describe"] = partial(describe_each, predictor, box, alone=len(files) == 1)
    drawn: list[Image.Image] = []
    samples: list[dict[str, Any]] = []
    broken = 0
    for at in range(0, len(files), IMAGES):
        batch, reasons = read_files(files[at : at + IMAGES])
        broken += len(reasons)
        if len(reasons) == len(files) == 1 and not json:
            raise UserError(next(iter(reasons.values())))
        for path, reason in reasons.items():
            if json:
                print(json_format.dumps({"image": str(path), "error": reason}), flush=True)
            print(f"opensiglip: {reason}", file=sys.stderr)
        for name, question in questions.items() if batch else ():
            for one, answer in zip(batch, question([one.image for one in batch]), strict=True):
                one.answers[name] = answer
        for one in batch:
            print(as_json(one) if json else as_text(one), flush=True)
            if save is not None and len(drawn) < PICTURES:
                drawn.append(draw_cell(as_example(one)))
            if fiftyone is not None:
                samples.append(fiftyone_samples.sample(one.path, one.image.shape[2], one.image.shape[1], one.answers))
    if broken == len(files):
        raise UserError("none of the images could be read.")
    if save is not None:
        write_sheet(drawn, save)
    if fiftyone is not None:
        fiftyone_samples.write(samples, fiftyone)


def read_box(text: str) -> list[float]:
    """Four numbers with commas between. Raises UserError."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise UserError(f"--describe {text!r} is not a box; give X1,Y1,X2,Y2 in pixels, such as 10,20,90,80.")
    return numbers


def read_files(files: Sequence[Path]) -> tuple[list[ImageAnswers], dict[Path, str]]:
    """The images that can be read, and why the others can't."""
    batch: list[ImageAnswers] = []
    reasons: dict[Path, str] = {}
    for path in files:
        try:
            batch.append(ImageAnswers(path, load_image(path)))
        except UserError as error:
            reasons[path] = str(error)
    return batch, reasons


def describe_each(
    predictor: Predictor, box: Sequence[float], images: Sequence[Tensor], *, alone: bool
) -> list[dict[str, Any]]:
    """What stands in the box of each image; those that do not have it say so. Raises UserError if it is `alone`."""
    answers: list[dict[str, Any]] = []
    for image in images:
        try:
            answers.append({"box": list(box), "text": predictor.describe(image, box)})
        except UserError as error:
            if alone:
                raise
            answers.append({"box": list(box), "error": str(error)})
    return answers


def as_json(one: ImageAnswers) -> str:
    """One line of JSON; boxes as lists of pixels."""
    facts = {"image": str(one.path), "width": one.image.shape[2], "height": one.image.shape[1]}
    return json_format.dumps(facts | one.answers, ensure_ascii=False, default=lambda answer: answer.as_json())


def as_text(one: ImageAnswers) -> str:
    """The answers in lines under the file's name."""
    lines = [str(one.path)]
    for question, answer in one.answers.items():
        if question == "caption":
            lines.append(f"  caption   {answer}")
        elif question == "classify":
            lines += [f"  {probability_text(share):>10}  {label}" for label, share in answer.items()]
        elif question == "describe":
            lines.append(f"  {box_text(answer['box'])}  {answer.get('text', answer.get('error'))}")
        elif question == "ask":
            outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in answer.outline)
            lines.append(f"  answer    {answer.text}")
            lines += [f"  {box_text(box)}  {name}".rstrip() for name, box in answer.boxes]
            lines += [f"  outline   {outline}"] if outline else []
        else:
            lines += [f"  {box_text(f.box)}  {f.phrase}  ({f.score:.2g})" for f in as_list(answer)]
    return "\n".join(lines)


def box_text(box: Sequence[float]) -> str:
    return ",".join(f"{edge:g}" for edge in (round(edge, 1) for edge in box))


def as_list(found: Found | list[Found]) -> list[Found]:
    return found if isinstance(found, list) else [found]


def as_example(one: ImageAnswers) -> Example:
    """The image with its answers as captions and regions, to be drawn as `data show` draws."""
    answers, image = one.answers, one.image
    shares = ", ".join(f"{label} {probability_text(share)}" for label, share in answers.get("classify", {}).items())
    text = answers.get("caption") or shares
    found = [f for question in ("locate", "propose") if question in answers for f in as_list(answers[question])]
    regions = [Region(f.box, {"en": f"{f.phrase} {f.score:.2g}"}) for f in found]
    if "text" in (described := answers.get("describe", {})):
        x1, y1, x2, y2 = described["box"]
        regions.append(Region((x1, y1, x2, y2), {"en": described["text"]}))
    if asked := answers.get("ask"):
        text = text or asked.text
        regions += [Region(box, {"en": name}) for name, box in asked.boxes]
        image = draw_outline(image, asked.outline)
    return Example(image, (Caption(text),) if text else (), tuple(regions), str(one.path))


def write_sheet(cells: Sequence[Image.Image], path: Path) -> None:
    """The cells side by side, in rows. Raises UserError if the file can't be written."""
    columns = min(COLUMNS, len(cells))
    width, height = cells[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(cells) // columns) * height), "white")
    for place, cell in enumerate(cells):
        sheet.paste(cell, (place % columns * width, place // columns * height))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except OSError as error:
        raise unwritten(path, error, "--save") from None
