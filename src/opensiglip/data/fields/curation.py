"""Fields that active curation reads: what the reference model sees of a visit, and where it comes from."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from opensiglip.data.fields.field import Drawn, Field, Texts, Visit
from opensiglip.data.fields.frame import Geometry
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch

REFERENCE, ORIGIN, TEACHER = "reference_", "origin_", "teacher_"  # how the names of their fields begin
TEACHER_IMAGE, TEACHER_TEXT = f"{TEACHER}image", f"{TEACHER}text"  # the reference's rows, whose products are its logits
ROW = "row"  # of `Origins`: which example
ROWS = "reference_rows"  # extra of an example that a cache gives
WRITERS = ("human", "mt", "synthetic", "exchanged", "other")  # `Caption.source`, as far as it is counted


class ReferenceTexts(Texts):
    """reference_text [B, L] int64: the visit's caption by the reference's own text pipeline."""

    def __init__(self, reference: TextPipeline) -> None:
        super().__init__()
        self.reference = reference

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> list[Drawn]:
        return super().draw(visit, rng, self.reference)

    def collate(self, drawn: Sequence[list[Drawn]], pipeline: TextPipeline) -> Batch:
        return {f"{REFERENCE}text": super().collate(drawn, self.reference)["text"]}


class ReferenceImages(Field):
    """reference_image...: the part of the image that the visit shows, in the reference's frame."""

    def __init__(self, frame: Geometry) -> None:
        self.frame = frame

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> Tensor:
        height, width = visit.example.image.shape[-2:]
        return self.frame.cut(visit.example, visit.window or (0, 0, height, width), visit.mirrored)[0]

    def collate(self, drawn: Sequence[Tensor], pipeline: TextPipeline) -> Batch:
        return {f"{REFERENCE}{name}": field for name, field in self.frame.batch(drawn).items()}


class CachedRows(Field):
    """teacher_image and teacher_text [B, E]: the reference's rows of image and caption, off a cache."""

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> tuple[np.ndarray, np.ndarray]:
        image, texts = visit.example.extras[ROWS]
        return image, texts[visit.caption.text if visit.caption else ""]

    def collate(self, drawn: Sequence[tuple[np.ndarray, np.ndarray]], pipeline: TextPipeline) -> Batch:
        images, texts = (torch.from_numpy(np.stack(rows)) for rows in zip(*drawn, strict=True))
        return {TEACHER_IMAGE: images, TEACHER_TEXT: texts}


class Origins(Field):
    """origin_source, origin_language, origin_writer [B] int64: places in `names`; the last is any other, or no text.

    origin_row [B] int64: the example's number among those of all sources.
    """

    def __init__(self, sources: Sequence[str], languages: Sequence[str]) -> None:
        self.names = {
            "source": tuple(dict.fromkeys(sources)),
            "language": (*dict.fromkeys(languages), "other"),
            "writer": WRITERS,
        }

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> tuple[int, ...]:
        caption = visit.caption
        assert visit.row is not None, "it reads the visits of a run"
        of = (visit.source, caption.language, caption.source) if caption else (visit.source, "other", "other")
        found = [
            names.index(one) if one in names else len(names) - 1
            for one, names in zip(of, self.names.values(), strict=True)
        ]
        return (*found, visit.row)

    def collate(self, drawn: Sequence[tuple[int, ...]], pipeline: TextPipeline) -> Batch:
        columns = torch.tensor(list(drawn)).unbind(1)
        return {f"{ORIGIN}{name}": column for name, column in zip([*self.names, ROW], columns, strict=True)}
