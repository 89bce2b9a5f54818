"""Open-vocabulary detectors of transformers, asked for many texts at once: OWL-ViT, OWLv2, Grounding DINO."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert
from transformers import AutoConfig, AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer

from opensiglip.errors import UserError, first_line

# The ensemble of OWL-ST has seven templates (A.2), of which only the first is established; the others are ours.
TEMPLATES = (
    "a photo of a {}",
    "{}",
    "a close-up photo of a {}",
    "a photo of the large {}",
    "a photo of the small {}",
    "a photo of many {}",
    "a drawing of a {}",
)
TEXTS = 1024  # encoded at once
REMEMBERED = 50_000  # embeddings of texts kept: categories, and the n-grams that many captions share

Size = tuple[int, int]  # height, width in pixels


class Found(NamedTuple):
    """What a detector sees on an image: boxes [N, 4] x1, y1, x2, y2 in its pixels, scores [N, Q] in 0..1."""

    boxes: Tensor
    scores: Tensor


class Detector(ABC):
    """Boxes for any text."""

    images: Any  # the image processor: what it makes of images [3, H, W] uint8 is `prepared`

    @abstractmethod
    def detect(self, prepared: dict[str, Tensor], sizes: Sequence[Size], asked: Sequence[Sequence[str]]) -> list[Found]:
        """Look on each of B images, of the sizes they came in, for its own list of texts."""


class Owl(Detector):
    """OWL-ViT and OWLv2: a box at every patch, scored against every text.

    The texts' embeddings are the mean over the templates, computed once for all images that ask for them.
    """

    def __init__(self, model: Any, images: Any, tokenizer: Any, templates: Sequence[str] = TEMPLATES) -> None:
        self.model, self.images, self.tokenizer, self.templates = model, images, tokenizer, templates
        self.is_padded = model.config.model_type == "owlv2"
        self.towers = model.owlv2 if self.is_padded else model.owlvit
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def detect(self, prepared: dict[str, Tensor], sizes: Sequence[Size], asked: Sequence[Sequence[str]]) -> list[Found]:
        self.learn(list(dict.fromkeys(text for texts in asked for text in texts)))
        grid, _ = self.model.image_embedder(prepared["pixel_values"].to(self.model.device))
        features = grid.flatten(1, 2)  # [B, N, D]
        boxes = box_convert(self.model.box_predictor(features, grid), "cxcywh", "xyxy")
        found = []
        for place, ((height, width), texts) in enumerate(zip(sizes, asked, strict=True)):
            # OWLv2 pads an image below or beside to a square before it is resized; OWL-ViT squeezes it.
            sides = [max(height, width)] * 4 if self.is_padded else [width, height] * 2
            embedded = torch.stack([self.known[text] for text in texts])[None]
            logits, _ = self.model.class_predictor(features[place, None], embedded)
            found.append(Found(boxes[place] * torch.tensor(sides, device=boxes.device), logits[0].sigmoid()))
        return found

    def learn(self, texts: list[str]) -> None:
        """Embed the texts that are not yet known."""
        if len(self.known) > REMEMBERED:
            self.known.clear()
        new = [text for text in texts if text not in self.known]
        step = max(1, TEXTS // len(self.templates))
        for some in (new[at : at + step] for at in range(0, len(new), step)):
            ids = self.tokenizer(
                [template.format(text) for text in some for template in self.templates],
                padding="max_length",
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self.model.device)
            pooled = self.towers.get_text_features(ids["input_ids"], ids["attention_mask"]).pooler_output
            mean = F.normalize(pooled, dim=-1).unflatten(0, (len(some), -1)).mean(1)
            self.known.update(zip(some, F.normalize(mean, dim=-1), strict=True))


class GroundingDino(Detector):
    """Grounding DINO and MM Grounding DINO: texts in one line, "a cat. a dog.", as many lines as they need.

    A text's score at a box is the mean over its tokens; as these stand apart by full stops, no text sees another.
    """

    def __init__(self, model: Any, images: Any, tokenizer: Any) -> None:
        self.model, self.images, self.tokenizer = model, images, tokenizer
        self.stop = tokenizer.convert_tokens_to_ids(".")

    def lines(self, texts: Sequence[str]) -> list[tuple[list[int], dict[int, slice]]]:
        """The texts laid out in lines of at most the model's length: ids, and which text has which tokens."""
        lines: list[tuple[list[int], dict[int, slice]]] = []
        room = self.model.config.max_text_len - 1  # the last is [SEP]
        for number, text in enumerate(texts):
            ids = self.tokenizer(text.replace(".", " "), add_special_tokens=False)["input_ids"][: room - 2]
            if not ids:
                continue
            if not lines or len(lines[-1][0]) + len(ids) + 1 > room:
                lines.append(([self.tokenizer.cls_token_id], {}))
            line, places = lines[-1]
            places[number] = slice(len(line), len(line) + len(ids))
            line += [*ids, self.stop]
        return [([*line, self.tokenizer.sep_token_id], places) for line, places in lines]

    @torch.no_grad()
    def detect(self, prepared: dict[str, Tensor], sizes: Sequence[Size], asked: Sequence[Sequence[str]]) -> list[Found]:
        device = self.model.device
        found = []
        for place, ((height, width), texts) in enumerate(zip(sizes, asked, strict=True)):
            image = {name: field[place, None].to(device) for name, field in prepared.items()}
            boxes, scores = [torch.empty(0, 4, device=device)], [torch.empty(0, len(texts), device=device)]
            for ids, places in self.lines(texts):
                seen = self.model(**image, input_ids=torch.tensor([ids], device=device))
                boxes.append(box_convert(seen.pred_boxes[0], "cxcywh", "xyxy"))
                likely = seen.logits[0].sigmoid()  # [N, tokens]
                scores.append(likely.new_zeros(len(likely), len(texts)))
                for number, tokens in places.items():
                    scores[-1][:, number] = likely[:, tokens].mean(1)
            sides = torch.tensor([width, height] * 2, device=device)
            found.append(Found(torch.cat(boxes) * sides, torch.cat(scores)))
        return found


def load_detector(name: str, device: torch.device) -> Detector:
    """The detector of a folder or hub id. Raises UserError if it can't be loaded or is of another kind."""
    try:
        kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        if kind not in ("owlvit", "owlv2", "grounding-dino", "mm-grounding-dino"):
            raise UserError(
                f"--detector {name} is a {kind}; give an OWL-ViT, an OWLv2 or a Grounding DINO, such as "
                "google/owlv2-base-patch16-ensemble."
            )
        model = AutoModelForZeroShotObjectDetection.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        model = model.eval().to(device)
        images = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # hub, file and weights errors of a dozen types
        reason = first_line(error)
        raise UserError(f"--detector {name!r} can't be loaded ({reason}); give a hub id or a saved folder.") from error
    return Owl(model, images, tokenizer) if kind.startswith("owl") else GroundingDino(model, images, tokenizer)
