"""`opensiglip data balance` and `data dedup`: files of weights for `train --example-weights`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from opensiglip.data.example import Source
from opensiglip.data.parallel import default_workers
from opensiglip.data.sources.registry import open_source, splits_of, with_box_format
from opensiglip.data.stats.collect import collect, starts
from opensiglip.data.stats.counts import Wish
from opensiglip.data.weighting import balance as balancing
from opensiglip.data.weighting.attributes import read_attributes
from opensiglip.data.weighting.dedup import PAIRS, Ints, alike, cluster, keep
from opensiglip.data.weighting.file import write_weights
from opensiglip.data.weighting.languages import parse_languages
from opensiglip.data.weighting.lexicon import Lexicon
from opensiglip.disk import writable
from opensiglip.errors import UserError
from opensiglip.evaluation.image_attributes import read_by_model
from opensiglip.inference.predictor import load
from opensiglip.json_file import write_json
from opensiglip.progress import progress

BATCH = 64  # images that are embedded at a time
ASSOCIATIONS = 12  # that are printed, the largest before; the JSON has all


def balance(
    source: Annotated[str, tyro.conf.Positional],
    *,
    sensitive: str,
    out: Path,
    targets: str = "",
    lexicon: Path | None = None,
    attributes_by: str | None = None,
    confidence: float = 0.9,
    tolerance: float = 0.01,
    most: float = 5.0,
    languages: str | None = None,
    box_format: str | None = None,
    workers: int | None = None,
) -> None:
    """Weights that give the values of sensitive attributes equal shares and decorrelate them from targets.

    Prints the moments before and after, the effective sample size and the rows that show each attribute, and writes
    them as JSON next to the weights.

    Args:
        source: a source, as for train's --data; the weights are for its train split.
        sensitive: attributes whose values should be equally frequent, such as gender, or gender,age.
        out: output file, such as weights.parquet.
        targets: attributes that should not correlate with the sensitive ones, such as occupation; by default none.
        lexicon: JSON of {attribute: {value: {language: [words]}}} for attributes without a column; by default the
            included lists of gender (en, de, fr, es) and occupation (en).
        attributes_by: a model that reads attributes from images by zero-shot classification, in place of captions, for
            rows without a column: a run, its model/ folder, or a hub id.
        confidence: with --attributes-by, smallest probability of a value; the attribute of other rows is unknown.
        tolerance: largest allowed difference of a share from the equal one, and largest allowed correlation with a
            target.
        most: largest weight.
        languages: languages, as for train's --languages.
        box_format: box format of a folder, as in `data show`.
        workers: number of processes; by default one per CPU; 0 uses the current process only.
    """
    if not 0 < tolerance < 1:
        raise UserError(f"--tolerance {tolerance} is out of range; give a number between 0 and 1, such as 0.01.")
    if not 1 < most <= 1000:
        raise UserError(f"--most {most} is out of range; give a number above 1, at most 1000.")
    if not 0 < confidence <= 1:
        raise UserError(f"--confidence {confidence} is out of range; give a number above 0, at most 1, such as 0.9.")
    named, wanted = names_of(sensitive), names_of(targets)
    if not named or set(named) & set(wanted):
        raise UserError("--sensitive and --targets name attributes, each one only once.")
    check_out(out)
    (spec,) = with_box_format([source], box_format)
    opened = open_source(spec, languages=parse_languages(languages)[0])
    lists = Lexicon.load(lexicon)
    if attributes_by is not None:
        shown = read_by_model(opened, [*named, *wanted], lists, load(attributes_by), confidence)
    else:
        shown = read_attributes(opened, [*named, *wanted], lists, default_workers() if workers is None else workers)
    moments = balancing.moments_of(shown, named, wanted)
    weights = balancing.solve(shown.counts, moments, tolerance, most)
    write_weights(out, weights[shown.rows], opened)
    found = balancing.facts(shown, moments, weights)
    write_json(out.with_suffix(".json"), found)
    print("\n".join([*lines(found), f"weights: {out}\nfigures: {out.with_suffix('.json')}"]))


def dedup(
    source: Annotated[str, tyro.conf.Positional],
    *,
    out: Path,
    against: str | None = None,
    model: str | None = None,
    cosine: float = 0.95,
    languages: str | None = None,
    box_format: str | None = None,
    workers: int | None = None,
) -> None:
    """Weight 0 for images that repeat an earlier one or occur in held-out data, and 1 for all others.

    Images are compared by file and by a perceptual hash, whatever their size, format and quality; with a model also by
    embedding. Prints counts and examples, and writes them as JSON next to the weights.

    Args:
        source: a source, as for train's --data; the weights are for its train split.
        out: output file, such as weights.parquet.
        against: held-out data that train must not contain, in any of its splits; if it is the source itself, its splits
            other than train.
        model: also compare the image embeddings of this model: a run, its model/ folder, or a hub id.
        cosine: cosine of two embeddings from which on they count as the same image.
        languages: languages, as for train's --languages.
        box_format: box format of a folder, as in `data show`.
        workers: number of processes; by default one per CPU; 0 uses the current process only.
    """
    if not 0 < cosine <= 1:
        raise UserError(f"--cosine {cosine} is out of range; give a number above 0, at most 1, such as 0.95.")
    check_out(out)
    (spec,) = with_box_format([source], box_format)
    splits = {"train": open_source(spec, languages=parse_languages(languages)[0])}
    splits |= {} if against is None else held_out_splits(against, source)
    found = collect(splits, Wish(), None, default_workers() if workers is None else workers)
    places, opened = found.counts.indices, list(splits.values())
    if not len(places):
        raise UserError(f"no image of {source} can be read; `opensiglip data show` says why.")
    clusterings = [found.exact, found.near]
    if model is not None:
        clusterings.append(alike(embeddings(model, opened, places), cosine))
    train = opened[0]
    kept = keep(len(train), places, cluster(len(places), *clusterings), train.group)
    if not kept.weights.any():
        raise UserError(f"every example of {source} is held out by --against {against}; name other data.")
    write_weights(out, kept.weights, train)
    pairs = [("repeats", pair) for pair in kept.repeats[:PAIRS]] + [
        ("is held out as", pair) for pair in kept.leaks[:PAIRS]
    ]
    examples = [f"{named(splits, row)} {what} {named(splits, other)}" for what, (row, other) in pairs]
    told = {
        "rows": len(train),
        "broken": dict(found.counts.broken.most_common()),
        "repeats": len(kept.repeats),
        "held_out_too": len(kept.leaks),
        "left": int(kept.weights.sum()),
        "too_plain_to_tell": found.plain,
        "every_pair_was_compared": found.near.complete,
        "examples": examples,
    }
    write_json(out.with_suffix(".json"), told)
    print(f"{told['repeats']:>9} of {len(train)} rows repeat an earlier one")
    print(f"{told['held_out_too']:>9} occur in held-out data")
    print("".join(f"          {one}\n" for one in examples), end="")
    print(f"{told['left']:>9} remain\nweights: {out}\nfigures: {out.with_suffix('.json')}")


def check_out(out: Path) -> None:
    """Raises UserError, before data are opened, where weights can't be written or their figures would replace them."""
    if out.suffix == ".json" or out.is_dir():
        raise UserError(
            f"--out {out} must be a parquet file, such as weights.parquet; the figures are written as JSON next to it."
        )
    writable(out.parent)


def held_out_splits(against: str, source: str) -> dict[str, Source]:
    """The splits of held-out data by name; of the source itself but train. Raises UserError where there is none."""
    splits = splits_of(against)
    if against == source:
        splits.pop("train", None)
    if not splits:
        raise UserError(f"--against {against} has no split but train; name other data.")
    return {f"held-out {name}": one for name, one in splits.items()}


def embeddings(model: str, sources: Sequence[Source], places: Ints) -> Tensor:
    """Unit embeddings [N, D] of the rows at these places, numbered on over the sources."""
    predictor, parts, firsts = load(model), [], np.array(starts(sources))
    with progress(total=len(places), desc="embed", unit="image") as bar:
        for at in range(0, len(places), BATCH):
            some = places[at : at + BATCH]
            numbers = np.searchsorted(firsts, some, side="right") - 1
            rows = zip(numbers.tolist(), (some - firsts[numbers]).tolist(), strict=True)
            parts.append(predictor.embed_framed(predictor.framed([sources[n].example(row).image for n, row in rows])))
            bar.update(len(some))
    return torch.cat(parts)


def named(splits: Mapping[str, Source], place: int) -> str:
    """A row by its split, number and name."""
    for split, source in splits.items():
        if place < len(source):
            return f"{split} {place} ({source.example(place).name or source.group(place)})"
        place -= len(source)
    raise IndexError(place)


def names_of(text: str) -> list[str]:
    """Names that commas part, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def lines(found: dict[str, Any]) -> list[str]:
    """The facts of balancing as text."""
    rows = found["rows"]
    said = [f"{n:>9} of {rows} rows show {name} ({n / rows:.1%})" for name, n in found["rows_that_show"].items()]
    said += [f"{n:>9} rows can't be read: {reason}" for reason, n in found["broken"].items()]
    alone = [one for one in found["moments"] if one["target"] is None]
    said += ["", f"{'share of':<48} {'rows':>9} {'before':>8} {'after':>8}"]
    said += [f"{one['value']:<48} {one['rows']:>9} {share(one)}" for one in alone]
    pairs = sorted((one for one in found["moments"] if one["target"]), key=lambda one: -abs(one["moment"][0]))
    if pairs:
        said += ["", f"{'share of, among rows of':<48} {'rows':>9} {'before':>8} {'after':>8}  correlation"]
        said += [
            f"{one['value'] + ', ' + one['target']:<48} {one['rows']:>9} {share(one)}  "
            f"{one['moment'][0]:+.3f} -> {one['moment'][1]:+.3f}"
            for one in pairs[:ASSOCIATIONS]
        ]
    if len(pairs) > ASSOCIATIONS:
        said.append(f"and {len(pairs) - ASSOCIATIONS} smaller ones")
    effective = found["effective_rows"]
    return [
        *said,
        "",
        f"effective sample size {effective:.0f} of {rows} rows ({effective / rows:.1%}); largest weight "
        f"{found['largest_weight']:.2f}; {found['rows_of_weight_0']} rows of weight 0",
    ]


def share(one: dict[str, Any]) -> str:
    """Shares before and after; a dash where nothing is left to have one."""
    return " ".join(f"{'-' if value is None else f'{value:.1%}':>8}" for value in one["share"])
