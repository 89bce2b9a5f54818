"""Fields that active curation and distillation read: what another model sees of a visit, and where it comes from."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from opensiglip.data.fields.field import Drawn, Field, Texts, Visit
from opensiglip.data.fields.frame import Geometry
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch

ORIGIN = "origin_"  # how the names of the fields of `Origins` begin
ROW = "row"  # of `Origins`: which example
SCORER, TEACHER = "scorer_", "teacher_"  # of the rows of the model that scores, and of the one that teaches
ROWS = "_rows"  # ends the name of an example's extra that a cache gives
WRITERS = ("human", "mt", "synthetic", "exchanged", "other")  # `Caption.source`, as far as it is counted


class ReferenceTexts(Texts):
    """for_ROLE_text [B, L] int64: the visit's caption by a reference's own text pipeline."""

    def __init__(self, reference: TextPipeline, role: str) -> None:
        super().__init__()
        self.reference, self.role = reference, role

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> list[Drawn]:
        return super().draw(visit, rng, self.reference)

    def collate(self, drawn: Sequence[list[Drawn]], pipeline: TextPipeline) -> Batch:
        return {f"for_{self.role}_text": super().collate(drawn, self.reference)["text"]}


class ReferenceImages(Field):
    """for_ROLE_image...: the part of the image that the visit shows, in a reference's frame."""

    def __init__(self, frame: Geometry, role: str) -> None:
        self.frame, self.role = frame, role

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> Tensor:
        height, width = visit.example.image.shape[-2:]
        return self.frame.cut(visit.example, visit.window or (0, 0, height, width), visit.mirrored)[0]

    def collate(self, drawn: Sequence[Tensor], pipeline: TextPipeline) -> Batch:
        return {f"for_{self.role}_{name}": field for name, field in self.frame.batch(drawn).items()}


class CachedRows(Field):
    """A reference's rows [B, E] of image and caption, off a cache, under each of the names that begin with `writes`."""

    def __init__(self, role: str, writes: Sequence[str]) -> None:
        self.role, self.writes = role, writes

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> tuple[np.ndarray, np.ndarray]:
        image, texts = visit.example.extras[self.role + ROWS]
        return image, texts[visit.caption.text if visit.caption else ""]

    def collate(self, drawn: Sequence[tuple[np.ndarray, np.ndarray]], pipeline: TextPipeline) -> Batch:
        images, texts = (torch.from_numpy(np.stack(rows)) for rows in zip(*drawn, strict=True))
        return named_rows(images, texts, self.writes)


def named_rows(images: Tensor, texts: Tensor, writes: Sequence[str]) -> Batch:
    """A reference's rows [B, E] under the names by which they are read: SCORER's, TEACHER's or both."""
    return {f"{begin}{kind}": rows for begin in writes for kind, rows in (("image", images), ("text", texts))}


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
