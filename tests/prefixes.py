"""What stands before a decoder's answer, as ids; written out here: tests do not ask the code that they judge."""

from opensiglip.data.fields.captions import PREFIXES, Ids, box_ids
from opensiglip.data.text import TextPipeline


def caption_prefix(pipeline: TextPipeline, tasks: tuple[str, ...], language: str = "en") -> Ids:
    """What stands before a caption: nothing where captions are the only task (Cap, CapPa), else "Cap:" (LocCa).

    Of tasks by PaLI's interface, "caption en" or another language.
    """
    if "caption" in tasks:
        return pipeline.ids(f" caption {language}")
    return () if tasks == ("cap",) else pipeline.ids(PREFIXES["cap"])


def referring_prefix(pipeline: TextPipeline, phrase: str) -> Ids:
    """What stands before the box in "ARef: phrase : box"; decoding goes on from it."""
    return pipeline.ids(PREFIXES["aref"]) + pipeline.ids(f" {phrase}") + pipeline.ids(" :")


def grounded_prefix(pipeline: TextPipeline, box_text: str) -> Ids:
    """What stands before the phrase in "GCap: box : phrase"."""
    return pipeline.ids(PREFIXES["gcap"]) + box_ids(pipeline, box_text) + pipeline.ids(" :")
