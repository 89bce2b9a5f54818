"""Held-out images that stand in the training data: what a run remembers of what it read, and what eval says of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from test_resume import cut_short
from toys import Rectangles

from opensiglip import evaluate
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.checkpoints.seen_images import SeenImages, read_seen
from opensiglip.data.example import Example
from opensiglip.data.fields.field import Images
from opensiglip.data.fields.frame import Frame
from opensiglip.data.loader import DataPlan, Steps
from opensiglip.data.seen import image_hash, words
from opensiglip.data.stats.duplicates import among, perceptual_hash
from opensiglip.data.text import TextPipeline

TRAIN, HELD_OUT, LEAKED = 16, 6, 3


def photos(root: Path, leaked: int) -> str:
    """Pictures of noise, of which `leaked` held-out ones are training images, smaller and as JPEG."""
    root.mkdir()
    rng, rows = np.random.default_rng(5), []
    noise = [
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((64, 64)) for _ in range(TRAIN + HELD_OUT)
    ]
    for place, picture in enumerate(noise[:TRAIN]):
        picture.save(root / f"{place}.png")
        rows.append({"file_name": f"{place}.png", "captions": [f"picture {place}"], "split": "train"})
    for place in range(HELD_OUT):
        copy = noise[place if place < leaked else TRAIN + place].resize((48, 48))
        copy.save(root / f"held-out-{place}.jpg", quality=80)
        rows.append({"file_name": f"held-out-{place}.jpg", "captions": [f"copy {place}"], "split": "val"})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(root)


def notes(run: Path, data: str) -> list[str]:
    return list(evaluate(str(run), data, ["retrieval"], quiet=True, trust=True).get("notes", []))


def test_a_planted_leak_is_counted_and_no_leak_is_silent(run: Run, tmp_path: Path) -> None:
    leaky, clean = photos(tmp_path / "leaky", LEAKED), photos(tmp_path / "clean", 0)
    made = tmp_path / "run"
    run(made, data=[leaky], steps=2, save_every=2)
    assert len(read_seen(RunFolder(made).seen)) == TRAIN, "each image once, those held out not at all"
    said = notes(made, leaky)
    assert len(said) == 1 and said[0].startswith(
        f"{LEAKED} of {HELD_OUT} held-out images look like images that the run"
    )
    assert notes(made / "model", leaky) == said, "of the run's model, too"
    assert notes(made, clean) == []
    RunFolder(made).seen.unlink()
    assert notes(made, leaky) == [], "a run of an earlier version has no record"
    RunFolder(made).seen.write_bytes(b"no safetensors")
    assert notes(made, leaky) == []


def test_a_run_that_was_cut_short_remembers_the_same(run: Run, tmp_path: Path) -> None:
    data = photos(tmp_path / "data", 0)
    run(tmp_path / "straight", data=[data], steps=4, save_every=1)
    cut_short(1, lambda: run(tmp_path / "cut", data=[data], steps=4, save_every=1))
    run(tmp_path / "cut", data=[data], steps=4, save_every=1, resume=True)
    straight, cut = (RunFolder(tmp_path / name).seen.read_bytes() for name in ("straight", "cut"))
    assert straight == cut and len(read_seen(RunFolder(tmp_path / "cut").seen)) == TRAIN


def test_two_ranks_hash_what_one_does_and_only_while_the_data_is_new(pipeline: TextPipeline) -> None:
    frame = Frame(32)
    shared: dict[str, Any] = {"sources": [Rectangles(16)], "frame": frame, "fields": [Images(frame)]}
    shared |= {"pipeline": pipeline, "batch_size": 8, "seed": 3}
    alone = Steps(DataPlan(**shared))
    ranks = [Steps(DataPlan(**shared, rank=rank, ranks=2)) for rank in (0, 1)]
    for step in (0, 1):
        parts = [one[step].hashes for one in ranks]
        whole = alone[step].hashes
        assert whole is not None and len(whole) == 8 and all(part is not None for part in parts)
        assert np.array_equal(whole, np.concatenate([part for part in parts if part is not None]))
    assert alone[2].hashes is None, "a second epoch brings nothing new"
    cropped, whole = Steps(DataPlan(**shared | {"frame": Frame(32, 0.3)}))[0].hashes, alone[0].hashes
    assert cropped is not None and whole is not None
    assert int(np.bitwise_count(cropped ^ whole).max()) <= 3, "of the whole image, whatever part of it is seen"


def test_the_hash_is_of_the_whole_image_and_of_no_scene() -> None:
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6) * 255, (64, 64), mode="bilinear")[0].byte()
    assert image_hash(Example(image, ()), image) == perceptual_hash(image) != 0
    assert image_hash(Example(image, (), extras={"scene_plan": ()}), image) == 0


def test_near_hashes_are_found_among_many_and_plain_ones_never() -> None:
    rng = np.random.default_rng(0)
    known = rng.integers(0, 2**64, 20_000, np.uint64)
    flips = np.uint64(0b1011) << np.uint64(14)
    asked = np.array([known[7], known[8] ^ flips, known[9] ^ (flips | np.uint64(1 << 40)), 0, 2**64 - 1], np.uint64)
    found = among(asked, np.concatenate([known, words([0, 2**64 - 1])]))
    assert found.tolist() == [True, True, False, False, False], "3 bits of 64, of any band"
    assert among(asked, words([])).tolist() == [False] * 5


def test_a_file_is_a_sorted_set_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensiglip.checkpoints.seen_images.LIMIT", 3)
    seen, path = SeenImages(), tmp_path / "seen.safetensors"
    for some, kept in (([9, 0, 2**63 + 1, 9], [9, 2**63 + 1]), ([5, 9], [5, 9, 2**63 + 1]), ([4, 6], [4, 5, 6])):
        seen.add(words(some))
        seen.save(path, torch.device("cpu"), write=True)
        assert read_seen(path).tolist() == kept
    seen.add(words([1]))
    seen.save(path, torch.device("cpu"), write=False)
    assert read_seen(path).tolist() == [4, 5, 6]
