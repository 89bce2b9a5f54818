"""What `opensiglip data stats` shows: lines for the terminal, and stats.html with plots and pictures, in one file."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from opensiglip.data.example import BrokenExample, Example, Source
from opensiglip.data.stats.collect import Statistics
from opensiglip.data.stats.histogram import Histogram
from opensiglip.disk import unwritten
from opensiglip.json_file import write_json
from opensiglip.reports.contact_sheet import fact_text, readable
from opensiglip.reports.curves import INK, LINE, svg
from opensiglip.reports.drawing import COLORS, as_uri
from opensiglip.reports.page import pages

SHEET = 24  # pictures of the sample
PICTURE = 160  # pixels of a picture's longer side
CLUSTERS, MEMBERS = 8, 4  # of look-alikes that are shown
BINS = 40
LANGUAGES = 6  # that have a plot of their own; tables name all


@dataclass(frozen=True)
class Plot:
    """A histogram with its name and figures."""

    name: str
    svg: str
    figures: str


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, and what is said of it."""

    uri: str
    text: str


def write_page(out: Path, name: str, statistics: Statistics, splits: dict[str, Source]) -> None:
    """Write stats.json and stats.html into the folder. Raises UserError where that can't be done."""
    counts = statistics.counts
    total = sum(statistics.splits.values())
    spread = [step * total // min(SHEET, total) for step in range(min(SHEET, total))]
    extremes = {"smallest": counts.smallest, "widest": counts.widest, "tallest": counts.tallest}
    clusters = {"the same file": statistics.exact, "as good as the same": statistics.near}
    page = (
        pages()
        .get_template("data_page.html")
        .render(
            name=name,
            lines=lines(statistics),
            plots=plots(statistics),
            sample=list(pictures(splits, spread, boxes=True)),
            extremes={
                kind: list(pictures(splits, [row for _, row in sorted(of.rows, reverse=True)]))
                for kind, of in extremes.items()
            },
            clusters={
                kind: [list(pictures(splits, counts.indices[rows].tolist())) for rows in of.largest(CLUSTERS, MEMBERS)]
                for kind, of in clusters.items()
            },
            broken={reason: counts.broken_names.get(reason, []) for reason, _ in counts.broken.most_common()},
        )
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "stats.json", statistics.facts())
        (out / "stats.html").write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise unwritten(out, error) from None


def lines(statistics: Statistics) -> list[tuple[str, str]]:
    """Every figure, by name."""
    counts, facts = statistics.counts, statistics.facts()
    found = [
        ("rows", f"{fact_text(statistics.splits)}; read {counts.rows:,}"),
        ("broken", fact_text(dict(counts.broken.most_common()))),
        ("of numbers", "smallest | 5 % | median | 95 % | largest; mean"),
        *((name, figures(getattr(counts, name))) for name in ("width", "height", "aspect")),
        ("bytes of a file", figures(counts.bytes)),
        ("captions of an image", figures(counts.captions)),
        ("captions by source", fact_text(dict(counts.sources.most_common()))),
        ("captions that repeat another", f"{statistics.repeated_texts:,}"),
    ]
    found += [(name, f"{count:,}") for name, count in counts.cleaned.most_common()]
    for name, of in (("letters", counts.letters), ("words", counts.words), ("tokens", counts.tokens)):
        found += [(f"{name} of a caption, {code}", figures(h)) for code, h in by_size(of)]
    found += [(f"tokens over 64, {code}", f"{100 * h.above(64) / len(h):.2f} %") for code, h in by_size(counts.tokens)]
    found += [("languages, given as detected", fact_text(facts["languages_detected"]))] if counts.detected else []
    found += [("regions of an image", figures(counts.regions))]
    if len(counts.area):
        found += [
            ("box area, % of the image", figures(counts.area)),
            ("box width / height", figures(counts.box_aspect)),
        ]
        found += [("score of a box", figures(counts.score))] if len(counts.score) else []
        found += [(f"letters of a phrase, {code}", figures(h)) for code, h in by_size(counts.phrases)]
    found += [("other columns", fact_text(dict(counts.columns.most_common())))]
    if counts.labels:
        found += [("classes", f"{len(counts.labels):,}: {fact_text(dict(counts.labels.most_common(8)))}")]
    if len(counts.indices):
        least = "" if statistics.near.complete else "at least "
        found += [
            ("copies of a file", f"{statistics.exact.repeated:,}"),
            (
                "look-alikes, copies too",
                f"{least}{statistics.near.repeated:,}; too plain to tell: {statistics.plain:,}",
            ),
            ("held out, and in train too", f"{statistics.leaks:,}"),
        ]
    pace = counts.rows / max(statistics.seconds, 1e-9)
    took = f"{statistics.seconds:,.1f} s ({pace:,.0f} rows/s)"
    if statistics.peak_bytes is not None:
        took += f", peak memory {statistics.peak_bytes / 2**20:,.0f} MiB"
    return [*found, ("took", took)]


def by_size(histograms: dict[str, Histogram]) -> list[tuple[str, Histogram]]:
    return sorted(histograms.items(), key=lambda one: -len(one[1]))


def figures(histogram: Histogram) -> str:
    """Smallest, 5 %, median, 95 %, largest, and the mean."""
    if not len(histogram):
        return "none"
    ends = [histogram.low, *map(histogram.quantile, (0.05, 0.5, 0.95)), histogram.high]
    return f"{' | '.join(f'{value:,.4g}' for value in ends)}; mean {histogram.total / len(histogram):,.4g}"


def plots(statistics: Statistics) -> list[Plot]:
    """The histograms that have anything in them."""
    counts = statistics.counts
    named = {
        "width, pixels": counts.width,
        "height, pixels": counts.height,
        "width / height": counts.aspect,
        "bytes of a file": counts.bytes,
        "captions of an image": counts.captions,
        **{f"letters of a caption, {code}": h for code, h in by_size(counts.letters)[:LANGUAGES]},
        **{f"tokens of a caption, {code}": h for code, h in by_size(counts.tokens)[:LANGUAGES]},
        "regions of an image": counts.regions,
        "box area, % of the image": counts.area,
        "box width / height": counts.box_aspect,
        "score of a box": counts.score,
    }
    return [Plot(name, bars(name, of), figures(of)) for name, of in named.items() if len(of) and of.high > of.low]


def bars(name: str, histogram: Histogram) -> str:
    """An <svg> of how often each size came, on a logarithmic scale where sizes differ by more than 20 times."""
    values, counts = np.array(sorted(histogram.counts.items())).T
    wide = values[0] > 0 and values[-1] > 20 * values[0]
    low, high = (np.log10(values[[0, -1]])) if wide else values[[0, -1]]
    edges = np.linspace(low, high, BINS + 1)
    heights, _ = np.histogram(np.log10(values) if wide else values, edges, weights=counts)
    edges = 10**edges if wide else edges
    figure = Figure(figsize=(3.2, 1.7), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.bar(edges[:-1], heights, np.diff(edges), align="edge", color=LINE, linewidth=0)
    if wide:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.tick_params(colors=INK, labelsize=8, length=0, which="both")
    axes.spines[:].set_visible(False)
    return svg(figure, name)


def pictures(splits: dict[str, Source], rows: Sequence[int], *, boxes: bool = False) -> Iterator[Picture]:
    """The images of rows, numbered on over the splits, with name and caption; those that can be read."""
    for row in rows:
        at = row
        for split, source in splits.items():
            if at < len(source):
                with suppress(BrokenExample):
                    yield picture(split, source.example(at), boxes)
                break
            at -= len(source)


def picture(split: str, example: Example, boxes: bool) -> Picture:
    phrases = [readable(region.phrases) for region in example.regions]
    colors = {phrase: COLORS[at % len(COLORS)] for at, phrase in enumerate(dict.fromkeys(phrases))}
    drawn = [(region.bbox, colors[phrase]) for region, phrase in zip(example.regions, phrases, strict=True)]
    caption = readable({caption.language: caption.text for caption in reversed(example.captions)})
    height, width = example.image.shape[1:]
    return Picture(
        as_uri(example.image, drawn if boxes else (), PICTURE), f"{split}/{example.name}, {width} x {height}: {caption}"
    )


def as_text(statistics: Statistics) -> str:
    """The figures for the terminal: of numbers the smallest, 5 %, the median, 95 % and the largest."""
    return "\n".join(f"{name}: {value}" for name, value in lines(statistics))
