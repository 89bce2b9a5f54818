"""From what the user writes after `--data` to a source."""

from collections.abc import Sequence
from pathlib import Path

from opensiglip.data.example import Source
from opensiglip.data.sources.folder import Folder
from opensiglip.data.sources.sugarcrepe import Pairs
from opensiglip.errors import UserError


def open_source(spec: str, *, split: str = "train", languages: Sequence[str] | None = None, pixels: int = 64) -> Source:
    """The source of a spec: `scenes` (with options after a colon) drawn at `pixels` a side, a folder of images, or
    a JSON file of SugarCrepe's pairs.

    `languages`: None or ["all"] for all it has. Raises UserError for what is not there, or has no such split or texts.
    """
    if spec == "scenes" or spec.startswith("scenes:"):
        from opensiglip.data.scenes.source import open_scenes  # a folder does without the drawings and what draws them

        return open_scenes(spec, split=split, languages=languages, pixels=pixels)
    if spec.endswith(".json") and Path(spec).expanduser().is_file():
        return Pairs(spec, split=split, languages=languages)
    if not spec.strip() or not Path(spec).expanduser().is_dir():
        raise UserError(f"no such source: {spec}; give 'scenes' or a folder with metadata.jsonl.")
    return Folder(spec, split=split, languages=languages)
