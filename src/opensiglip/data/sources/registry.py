"""From what the user writes after `--data` to a source."""

from collections.abc import Sequence
from pathlib import Path

from opensiglip.data.example import Source
from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.sources.folder import Folder
from opensiglip.data.sources.sugarcrepe import Pairs
from opensiglip.errors import UserError

BOX_FORMAT = ":box_format="  # stands between a folder and the layout of its boxes


def open_source(spec: str, *, split: str = "train", languages: Sequence[str] | None = None, pixels: int = 64) -> Source:
    """The source of a spec: `scenes` (with options after a colon) drawn at `pixels` a side, a folder of images (with
    `:box_format=` and a layout after it), or a JSON file of SugarCrepe's pairs.

    `languages`: None or ["all"] for all it has. Raises UserError for what is not there, or has no such split or texts.
    """
    if spec == "scenes" or spec.startswith("scenes:"):
        from opensiglip.data.scenes.source import open_scenes  # a folder does without the drawings and what draws them

        return open_scenes(spec, split=split, languages=languages, pixels=pixels)
    if spec.endswith(".json") and Path(spec).expanduser().is_file():
        return Pairs(spec, split=split, languages=languages)
    folder, layout = spec, None
    if BOX_FORMAT in spec:
        folder, _, text = spec.rpartition(BOX_FORMAT)
        layout = BoxLayout.parse(text)
    if not folder.strip() or not Path(folder).expanduser().is_dir():
        raise UserError(f"no such source: {spec}; give 'scenes' or a folder with metadata.jsonl.")
    return Folder(spec, split=split, languages=languages, layout=layout, folder=folder)


def with_box_format(specs: Sequence[str], layout: str | None) -> list[str]:
    """The specs, each folder among them with this layout of boxes unless it names its own. Raises UserError."""
    if layout is None:
        return list(specs)
    BoxLayout.parse(layout)
    return [
        spec if BOX_FORMAT in spec or not Path(spec).expanduser().is_dir() else f"{spec}{BOX_FORMAT}{layout}"
        for spec in specs
    ]
