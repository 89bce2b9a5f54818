"""`data stats`: what is counted is what is there, planted copies are found, and memory does not grow with the rows."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensiglip.apps.cli import main
from opensiglip.data.example import Caption, Example, Region
from opensiglip.data.sources.python import spec_of
from opensiglip.data.sources.registry import open_source, splits_of
from opensiglip.data.stats.collect import Statistics, collect
from opensiglip.data.stats.counts import Counts, Wish
from opensiglip.data.stats.duplicates import look_alikes, perceptual_hash, same_files
from opensiglip.data.stats.histogram import Histogram
from opensiglip.data.text import TextPipeline
from opensiglip.reports import data_page


def photo(seed: int, size: tuple[int, int] = (48, 36)) -> Image.Image:
    """Soft shapes, as photographs have."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def write(root: Path) -> str:
    """Thirty photos; of 0 to 4 copies: 0 byte for byte, 1 as JPEG, 2 larger, 3 of low quality; 4's is held out."""
    root.mkdir()
    lines = []

    def add(name: str, picture: Image.Image, split: str = "train", **options: int) -> None:
        picture.save(root / name, **options)
        captions = [{"lang": "en", "text": f"a picture of {name}"}, {"lang": "de", "text": "immer dasselbe Bild"}]
        regions = [{"bbox": [0, 0, 24, 18], "phrase": "a quarter", "score": 0.5}]
        row = {"file_name": name, "captions_i18n": captions, "regions": regions, "split": split}
        lines.append(json.dumps(row | {"label": f"class {len(lines) % 3}"}))

    for number in range(30):
        add(f"{number}.png", photo(number), "val" if number == 4 else "train")
    add("copy0.png", photo(0))
    add("copy1.jpg", photo(1), quality=95)
    add("copy2.png", photo(2).resize((96, 72)))
    add("copy3.jpg", photo(3), quality=80)
    add("copy4.png", photo(4))
    add("wide.png", photo(99, (300, 20)))
    add("broken.png", photo(98))
    (root / "broken.png").write_bytes(b"\x89PNG")
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return str(root)


def counted(spec: str, workers: int = 0, **wishes: object) -> Statistics:
    return collect(splits_of(spec), Wish(**wishes), None, workers)


def test_what_is_counted_is_what_is_there(tmp_path: Path) -> None:
    found = counted(write(tmp_path / "data")).facts()
    assert found["splits"] == {"train": 36, "val": 1} and found["rows_read"] == 37
    assert found["broken"] == {"image can't be decoded": 1}
    assert found["images"]["width"] | {"mean": 0} == {
        "count": 36, "mean": 0, "min": 48, "p5": 48, "p50": 48, "p95": 96, "max": 300
    }  # fmt: skip
    assert found["captions"]["of_an_image"]["mean"] == 2 and found["captions"]["words"]["de"]["p50"] == 3
    assert found["captions"]["repeated"] == 35
    assert found["regions"]["area_percent"]["p50"] == 25 and found["regions"]["score"]["max"] == 0.5
    assert sum(found["labels"].values()) == 36 and len(found["labels"]) == 3


def test_copies_are_found_whatever_their_size_format_and_quality(tmp_path: Path) -> None:
    found = counted(write(tmp_path / "data"))
    assert found.exact.repeated == 2  # 0 and 4
    assert found.near.repeated == 5
    assert found.leaks == 1
    names = []
    for rows in found.near.largest(9, 4):
        source = open_source(str(tmp_path / "data"))
        names.append({source.example(row).name for row in found.counts.indices[rows].tolist() if row < 36})
    assert {"1.png", "copy1.jpg"} in names and {"2.png", "copy2.png"} in names


def test_two_processes_count_the_same(tmp_path: Path) -> None:
    spec = write(tmp_path / "data")
    one, two = (counted(spec, workers).facts() for workers in (0, 2))
    assert {**one, "seconds": 0, "peak_bytes": 0} == {**two, "seconds": 0, "peak_bytes": 0}


def test_the_page_needs_nothing_else_and_shows_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, out = write(tmp_path / "data"), tmp_path / "out"
    assert main(["data", "stats", spec, "--out", str(out), "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "copies of a file: 2" in said and "held out, and in train too: 1" in said and "peak memory" in said
    page = (out / "stats.html").read_text()
    assert page.count("data:image/jpeg;base64,") > 24 and page.count("<svg") > 5
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "copy1.jpg" in page and "image can&#39;t be decoded" in page
    assert json.loads((out / "stats.json").read_text())["duplicates"]["near"] == 5


def test_texts_of_strangers_do_no_harm_on_the_page(tmp_path: Path) -> None:
    row = Example(torch.zeros(3, 8, 8, dtype=torch.uint8), (Caption("<script>alert(1)</script>", "en"),))
    splits = splits_of(spec_of([row] * 60))
    data_page.write_page(tmp_path, "<b>", collect(splits, Wish(), None, 0), splits)
    page = (tmp_path / "stats.html").read_text()
    assert "<script" not in page and "<b>" not in page.partition("<h2>")[0].replace("<b>", "", 0).replace("</b>", "x")


def test_tokens_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    pipeline = TextPipeline.train(["a picture of a picture"] * 9, size=300)
    found = counted(write(tmp_path / "data"), pipeline=pipeline)
    ids = [len(pipeline.ids("immer dasselbe Bild"))] * 36
    assert found.counts.tokens["de"].total == sum(ids)


def test_languages_are_given_and_detected(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    found = counted(write(tmp_path / "data"), languages=True)
    assert found.counts.detected["de", "de"] == 36


def test_a_sample_is_spread_over_all(tmp_path: Path) -> None:
    splits = splits_of(
        spec_of([Example(torch.full((3, 8, 8), i, dtype=torch.uint8), (Caption("a"),)) for i in range(200)])
    )
    found = collect(splits, Wish(), 20, 0)
    assert 20 <= found.counts.rows <= 22 and found.counts.indices.max() >= 180


class Many:
    """Rows made when they are asked for."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def example(self, row: int) -> Example:
        noise = np.random.default_rng(row).integers(0, 256, (3, 8, 9), np.uint8)
        return Example(torch.from_numpy(noise), (Caption(f"picture {row}"),), (Region((0, 0, 4, 4), {"en": "x"}),))


def test_counts_do_not_grow_with_the_rows() -> None:
    few, many = (counted(spec_of(Many(rows)), duplicates=False).counts for rows in (300, 1500))
    sizes = [
        sum(len(h.counts) for h in (c.width, c.area, c.captions, *c.letters.values())) + len(c.smallest.rows)
        for c in (few, many)
    ]
    assert many.rows == 1500 and sizes[1] <= sizes[0] + 4
    assert len(many.indices) == len(many.texts) == 0


def test_a_histogram_is_exact_at_its_ends_and_right_to_half_a_percent() -> None:
    values = np.random.default_rng(0).lognormal(5, 2, 5000)
    whole, half, other = Histogram(), Histogram(), Histogram()
    for place, value in enumerate(values.tolist()):
        whole.add(value)
        (half if place % 2 else other).add(value)
    half.merge(other)
    assert half.facts() == pytest.approx(whole.facts())
    assert whole.facts()["min"] == values.min() and whole.facts()["max"] == values.max()
    for share in (0.05, 0.5, 0.95):
        assert whole.quantile(share) == pytest.approx(np.quantile(values, share, method="inverted_cdf"), rel=0.006)


def test_look_alikes_are_those_within_three_bits_and_no_others() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**63, 300, np.uint64)
    planted = [(5, 1), (50, 2), (100, 3), (150, 4)]
    copies = []
    for row, bits in planted:
        flipped = int(words[row])
        for bit in rng.choice(64, bits, replace=False):
            flipped ^= 1 << int(bit)
        copies.append(flipped)
    clusters, plain = look_alikes(np.concatenate([words, np.array([*copies, 0, 0, 1], np.uint64)]))
    assert [int(clusters.labels[300 + at]) for at in range(4)] == [5, 50, 100, 303]
    assert plain == 3 and clusters.repeated == 3 and clusters.complete


def test_chains_of_look_alikes_are_one_cluster() -> None:
    base, words = 0x0123456789ABCDEF, []
    for step in range(20):
        words.append(base)
        base ^= 0b11 << (step * 3)
    clusters, _ = look_alikes(np.array(words[::-1], np.uint64))
    assert set(clusters.labels.tolist()) == {0} or len(set(clusters.labels.tolist())) == 1


def test_the_hash_of_what_is_seen_outlives_size_and_quality() -> None:
    def seen(picture: Image.Image, **options: int) -> int:
        file = io.BytesIO()
        picture.save(file, "JPEG" if options else "PNG", **options)
        return perceptual_hash(
            torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1).contiguous()
        )

    own = seen(photo(7))
    assert (own ^ seen(photo(7), quality=50)).bit_count() <= 3 and (
        own ^ seen(photo(7).resize((96, 72)))
    ).bit_count() <= 3
    assert (own ^ seen(photo(8))).bit_count() > 8


def test_same_files_are_those_of_one_digest() -> None:
    clusters = same_files(np.array([7, 8, 7, 7, 9], np.uint64))
    assert clusters.labels.tolist() == [0, 1, 0, 0, 4] and clusters.repeated == 2
    assert [rows.tolist() for rows in clusters.largest(5, 2)] == [[0, 2]]


def test_broken_rows_are_named_up_to_five_a_reason() -> None:
    counts, other = Counts(), Counts()
    counts.broken_names, other.broken_names = {"a": ["row 1"]}, {"a": [f"row {n}" for n in range(9)], "b": ["row 0"]}
    counts.merge(other)
    assert counts.broken_names == {"a": ["row 1", "row 0", "row 1", "row 2", "row 3"], "b": ["row 0"]}


def test_a_wrong_sample_is_one_sentence(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", folder, "--sample", "0"]) == 2
    assert "--sample 0 is out of range" in capsys.readouterr().err
