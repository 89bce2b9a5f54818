"""One dial: a size name gives every width and depth of the encoders and the decoder.

A size can be spelled out too: WIDTHxDEPTHxMLPxHEADS/PATCH, and +WIDTHx... before the slash for another text tower.

B to g: big_vision models/vit.py:295-300; g is paired with a So400m text tower and decoder (SigLIP 2, Sec. 2.1). S is
ViT-S. tiny is ours: what two CPU cores can train in minutes.
"""

import re
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import Any

from opensiglip.errors import UserError


@dataclass(frozen=True)
class Shape:
    """A transformer's shape."""

    width: int
    depth: int
    mlp: int
    heads: int
    activation: str = "gelu_pytorch_tanh"  # flax's gelu; some ports of the released weights take the exact one


@dataclass(frozen=True)
class CoCaShape:
    """What CoCa has beside its towers: `queries` of the captioning pooler, `heads` of both poolers, `embed` wide.

    pooling: "cascade" (the contrastive pooler reads the captioning pooler's tokens; the paper's default), "parallel"
    (both read the image's) or "first" (one pooler, whose first token is contrasted: open_clip's released weights).
    `clip`: the image tower is CLIP's. `legacy_mask`: open_clip's mask, in which a token's validity counts for the next.
    """

    queries: int
    heads: int
    embed: int
    pooling: str = "cascade"
    clip: bool = False
    legacy_mask: bool = False


@dataclass(frozen=True)
class PairShape:
    """Pretrained towers of other makes, and the heads that bring them into one space (models/pretrained_towers.py).

    vision, text: folder or hub id of each tower; None: a tower of ours. head: of the images, "map", "mlp" or "linear".
    embed: width of the space. pooling: of the text tower, "mean", "cls" or "pooler". mean, std: of the image tower's
    pixels in [0, 1], by colour.
    """

    vision: str | None = None
    text: str | None = None
    head: str = "mlp"
    embed: int = 384
    dropout: float = 0.0
    pooling: str = "mean"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class HeadShape:
    """DINO's head is 2048, 256, 65536; SILC's is recalled as the same (docs/recipes/silc.md).

    `by_width`: layers start with the deviation 0.02 sqrt(2048 / inputs) instead of 0.02, so a narrow head's outputs are
    as large as those of DINO's (ours). With 0.02 its bottleneck starts near 0, where the normalisation is steep.
    """

    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 65536
    by_width: bool = False


SHAPES = {
    "tiny": Shape(128, 6, 512, 4),
    "S": Shape(384, 12, 1536, 6),
    "B": Shape(768, 12, 3072, 12),
    "L": Shape(1024, 24, 4096, 16),
    "So400m": Shape(1152, 27, 4304, 16),
    "g": Shape(1536, 40, 6144, 16),
}
# How much self-distillation weighs: SigLIP 2, Sec. 2.3 gives B, L, So400m and g; all other sizes take B's (ours).
DISTILLATION = defaultdict(lambda: 0.25, {"L": 0.5, "So400m": 1.0, "g": 0.5})
SPELLED = re.compile(r"[1-9]\d{0,4}x[1-9]\d{0,2}x[1-9]\d{0,5}x[1-9]\d{0,2}")
SIZES = ("tiny", "S/16", "B/16", "B/32", "L/14", "L/16", "So400m/14", "So400m/16", "g/16")


@dataclass(frozen=True)
class Architecture:
    """The shape of a recipe's networks, before the vocabulary is known."""

    resolution: int  # pixels of a side
    patch: int  # pixels of a side
    length: int  # tokens of a text, for the text tower and the decoder's rows
    vision: Shape
    text: Shape | None = None
    decoder: Shape | None = None
    decoder_bias: bool = False
    decoder_dropout: float = 0.0  # in training, of what each of the decoder's layers adds
    image_positions: bool = False  # does the decoder add a position of its own to each image token?
    encoder: str | None = None  # a timm encoder to take the place of the image tower
    frozen: bool = False  # the image tower is not trained
    pooling: bool = False  # a MAP head without a text tower, as weights of an image tower alone have it
    naflex: bool = False  # it takes images of any aspect ratio; its table of positions is that of `resolution`
    short_start: bool = False  # start as in models/short_start.py, not as the papers' code
    logit_scale: float = 10.0  # where the temperature's inverse starts
    logit_bias: bool = True  # has the comparison a bias? The sigmoid's; a softmax would not feel it
    pad_id: int = 0  # for networks that mask padding
    coca: CoCaShape | None = None  # poolers, and a text decoder in halves: `text` and `decoder` are their shapes
    t5: Shape | None = None  # PaLI's encoder-decoder; each half so deep
    pair: PairShape | None = None  # pretrained towers of other makes, and heads over them
    interpolation: str = "bilinear"  # how images are resized: bilinear or bicubic, as an image tower was trained
    nested: tuple[int, ...] = ()  # widths that embeddings may be cut to, as pairwise terms compare them so, too

    def __post_init__(self) -> None:
        """Raises UserError where a nested width is none of an embedding's part."""
        if wrong := [width for width in self.nested if not 0 < width < self.embedding]:
            raise UserError(
                f"--nested {wrong[0]} is not less than the embedding's width, {self.embedding}; give a smaller width."
            )

    @property
    def embedding(self) -> int:
        """Numbers of an embedding."""
        if self.coca is not None:
            return self.coca.embed
        return self.vision.width if self.foreign is None or self.foreign.vision is None else self.foreign.embed

    @property
    def foreign(self) -> PairShape | None:
        """The pair, where one of its towers is of another make."""
        return self.pair if self.pair is not None and (self.pair.vision or self.pair.text) else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, to store beside the weights."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Architecture":
        """The inverse of `to_json`."""
        kinds: dict[str, Any] = {"coca": CoCaShape, "pair": PairShape}
        shapes = {key: kinds.get(key, Shape)(**value) for key, value in stored.items() if isinstance(value, dict)}
        return cls(**{**stored, **shapes, "nested": tuple(stored.get("nested", ()))})


def architecture(
    size: str,
    resolution: int | None,
    *,
    length: int = 64,
    text: bool = False,
    decoder: bool = False,
    decoder_depth: int | None = None,
    decoder_width: int | None = None,
    decoder_bias: bool = False,
    decoder_dropout: float = 0.0,
    image_positions: bool = False,
) -> Architecture:
    """The networks of `size`, such as "B/16"; the decoder has the text tower's shape at half its depth, rounded down.

    A decoder has a layer at least; another width keeps the width of a head and the MLP's ratio. `resolution` None:
    64 for tiny, else what gives 256 tokens. Raises UserError on an unknown size, or a resolution or width that its
    patches or heads do not divide.
    """
    image, language, patch = shapes(size)
    name = size.partition("/")[0]
    side = resolution or (64 if name == "tiny" else 16 * patch)
    if patch < 1 or side < patch or side % patch:
        raise UserError(
            f"--resolution {side} is not a multiple of the patch size {patch}; try {max(1, side // patch) * patch}."
        )
    return Architecture(
        resolution=side,
        patch=patch,
        length=length,
        vision=image,
        text=language if text else None,
        decoder=_decoder(language, decoder_depth, decoder_width) if decoder else None,
        decoder_bias=decoder_bias,
        decoder_dropout=decoder_dropout,
        image_positions=image_positions,
        short_start=image.width <= SHAPES["tiny"].width,
    )


def shapes(size: str) -> tuple[Shape, Shape, int]:
    """Image tower, text tower and patch of a size, named or spelled out. Raises UserError on one that is neither."""
    name, _, patch = size.partition("/")
    if size == "tiny":
        return SHAPES["tiny"], SHAPES["tiny"], 8
    if re.fullmatch(r"[1-9]\d{0,3}", patch):
        if name in SHAPES and name != "tiny":
            return SHAPES[name], SHAPES["So400m" if name == "g" else name], int(patch)
        parts = [[int(number) for number in part.split("x")] for part in name.split("+") if SPELLED.fullmatch(part)]
        towers = [Shape(width, depth, mlp, heads) for width, depth, mlp, heads in parts]
        if len(towers) == 1 + name.count("+") <= 2 and all(tower.width % tower.heads == 0 for tower in towers):
            return towers[0], towers[-1], int(patch)
    raise UserError(f"--size {size!r} is unknown; sizes are {', '.join(SIZES)}, or WIDTHxDEPTHxMLPxHEADS/PATCH.")


def with_patch(size: str, patch: int) -> str:
    """The same towers with patches of so many pixels, spelled out. Raises UserError."""
    return f"{'+'.join(f'{t.width}x{t.depth}x{t.mlp}x{t.heads}' for t in shapes(size)[:2])}/{patch}"


def spell(networks: Architecture) -> str:
    """The size that gives these towers: its name if it has one."""
    plain = [replace(tower, activation=Shape.activation) for tower in (networks.vision, networks.text) if tower]
    for name in [name for name in SHAPES if name != "tiny" or networks.patch == 8]:
        size = "tiny" if name == "tiny" else f"{name}/{networks.patch}"
        if plain == list(shapes(size)[: len(plain)]):
            return size
    towers = dict.fromkeys("x".join(map(str, (t.width, t.depth, t.mlp, t.heads))) for t in plain)
    return f"{'+'.join(towers)}/{networks.patch}"


def head(size: str, prototypes: int | None = None) -> HeadShape:
    """The projection head of self-distillation: DINO's at every size but tiny, where 65536 prototypes cost the most.

    Of tiny's tower with other patches, too, so that a run can go on with them.
    """
    shape = HeadShape(512, 64, 1024, by_width=True) if shapes(size)[0] == SHAPES["tiny"] else HeadShape()
    return shape if prototypes is None else replace(shape, prototypes=prototypes)


def _decoder(language: Shape, depth: int | None, width: int | None) -> Shape:
    width, head = width or language.width, language.width // language.heads
    if width % head:
        raise UserError(f"--decoder-width {width} is not a multiple of {head}, the width of a head at this size.")
    return Shape(width, depth or max(1, language.depth // 2), width * language.mlp // language.width, width // head)
