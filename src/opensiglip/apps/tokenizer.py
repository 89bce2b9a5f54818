"""`opensiglip tokenizer train`."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import tyro

from opensiglip.data.coverage import Coverage, cover, table
from opensiglip.data.sources.cleaned import Cleaned
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.spec import with_clean
from opensiglip.data.text import TextPipeline
from opensiglip.disk import unwritten
from opensiglip.errors import UserError
from opensiglip.json_file import write_json


def train(
    source: Annotated[str, tyro.conf.Positional],
    out: Path,
    languages: str | None = None,
    size: int = 32_000,
    length: int = 64,
    clean: Literal["alt-text"] | None = None,
) -> None:
    """Train a byte-level BPE on a source's texts, for `train --tokenizer`, and report its coverage of each language.

    Args:
        source: a source, as for train's --data.
        out: folder for coverage.json and the tokenizer, which transformers can read, too.
        languages: all, or codes such as en or de,fr; by default all languages of the source.
        size: largest number of vocabulary entries.
        length: length limit of a text tower in tokens, including the token that ends the text; longer texts are
            counted.
        clean: alt-text removes boilerplate from texts and counts the changes; see docs/how-to/data.md.
    """
    if size < 300 or length < 2:
        raise UserError(f"--size {size} --length {length}: a vocabulary has 300 entries or more, a text 2 tokens.")
    wanted = None if languages is None else languages.split(",")
    opened = open_source(with_clean(source, clean), languages=wanted)
    pipeline = TextPipeline.train(opened.texts(), size=size, length=length)
    cleaned = opened.latest if isinstance(opened, Cleaned) else Counter[str]()
    found: dict[str, Coverage] = {}
    for code in opened.languages:
        found[code] = cover(pipeline, open_source(with_clean(source, clean), languages=[code]).texts())
    try:
        out.mkdir(parents=True, exist_ok=True)
        pipeline.save_pretrained(out)
        facts = {code: vars(one) for code, one in found.items()}
        write_json(out / "coverage.json", {"entries": len(pipeline), "length": length, "languages": facts})
    except OSError as error:
        raise unwritten(out, error) from None
    print(table(found, length))
    for reason, count in cleaned.most_common():
        print(f"{reason}: {count:,}")
    print(f"{len(pipeline):,} entries; use it with --tokenizer {out}")
