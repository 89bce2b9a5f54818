"""Pseudo-boxes: what is asked, what is kept, where boxes land, and that a killed run goes on as if it had not been."""

import json
import os
import shutil
import signal
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tiny_detectors
import torch
from PIL import Image
from torch import Tensor

from opensiglip.apps.annotate import annotate as annotate_module
from opensiglip.apps.annotate.choose import Limits, as_columns, choose
from opensiglip.apps.annotate.detector import Found, GroundingDino, Owl, Size, load_detector
from opensiglip.apps.annotate.queries import Query, ask_for, ngrams, read_categories
from opensiglip.apps.cli import main
from opensiglip.data.example import Region
from opensiglip.data.sources.folder import Folder
from opensiglip.errors import UserError


def test_ngrams_are_all_runs_of_words_short_ones_first() -> None:
    assert ngrams(["Red fox, snow!"]) == ["red", "fox", "snow", "red fox", "fox snow", "red fox snow"]
    assert ngrams(["a b c d"], longest=2, most=99) == ["b", "c", "d", "a b", "b c", "c d"]  # "a" is a stop word
    long = [f"w{place}" for place in range(12)]
    assert max(len(gram.split()) for gram in ngrams([" ".join(long)])) == 10


def test_ngrams_of_stop_words_or_with_a_generic_word_are_left_out() -> None:
    assert ngrams(["photo of the dog"]) == ["dog", "the dog", "of the dog"]
    assert ngrams(["in front of the"]) == [
        "front",
        "in front",
        "front of",
        "in front of",
        "front of the",
        "in front of the",
    ]
    assert ngrams(["stock image jpg", "of the", "", "!?"]) == []


def test_ngrams_of_several_texts_are_asked_once_and_cut_to_the_longest_last() -> None:
    assert ngrams(["red fox", "fox"]) == ["red", "fox", "red fox"]
    assert ngrams(["red fox"], most=2) == ["red", "fox"]
    assert len(ngrams([" ".join(f"w{place}" for place in range(60))])) == 300


def test_a_category_that_is_an_ngram_is_asked_as_that() -> None:
    assert ask_for(["red fox"], ["fox", "traffic light"]) == [
        Query("red", "ngram"),
        Query("fox", "ngram"),
        Query("red fox", "ngram"),
        Query("traffic light", "category"),
    ]


def test_categories_come_from_coco_a_file_or_nowhere(tmp_path: Path) -> None:
    coco = read_categories("coco")
    assert len(coco) == 80 and coco[0] == "person" and coco[-1] == "toothbrush"
    assert read_categories("none") == []
    (tmp_path / "names.txt").write_text("Red  fox\n\nfox\nfox\n")
    assert read_categories(str(tmp_path / "names.txt")) == ["red fox", "fox"]
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "picture.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("nowhere.txt", str(tmp_path / "empty.txt"), str(tmp_path / "picture.txt"), str(tmp_path)):
        with pytest.raises(UserError, match="--categories"):
            read_categories(name)


ASKED = [Query("fox", "ngram"), Query("red fox", "ngram"), Query("animal", "category")]
BOXES = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [40, 40, 60, 60.0]])


def kept(
    scores: Sequence[Sequence[float]], given: Sequence[Region] = (), **limits: Any
) -> list[tuple[Any, str, float]]:
    found = choose(BOXES, torch.tensor(scores), ASKED, (50, 50), given, Limits(**limits))
    return [(box.bbox, box.query.text, box.score) for box in found]


def test_each_box_has_its_best_query_and_overlapping_boxes_are_thinned() -> None:
    assert kept([[0.4, 0.6, 0], [0.7, 0.1, 0], [0.2, 0.29, 0], [0.31, 0, 0]]) == [
        ((1, 0, 11, 10), "fox", 0.7),
        ((40, 40, 50, 50), "fox", 0.31),  # cut to the image
    ]
    assert kept([[0.4, 0.6, 0], [0.7, 0.1, 0], [0, 0, 0], [0, 0, 0]], overlap=0.9) == [
        ((1, 0, 11, 10), "fox", 0.7),
        ((0, 0, 10, 10), "red fox", 0.6),
    ]
    assert len(kept([[0.9, 0, 0]] * 4, overlap=0.9, most=2)) == 2


def test_a_category_gives_way_to_an_ngram_that_reaches_the_threshold() -> None:
    nothing = [[0.0, 0, 0]] * 3
    assert kept([[0.3, 0, 0.9], *nothing]) == [((0, 0, 10, 10), "fox", 0.3)]  # 0.9 counts 0.27
    assert kept([[0.29, 0, 0.9], *nothing]) == [((0, 0, 10, 10), "animal", 0.9)]
    assert kept([[0.29, 0, 0.29], *nothing]) == []


def test_what_was_given_stays_and_what_lies_over_it_is_left_out() -> None:
    given = [Region((0, 0, 10, 10), {"en": "a vixen"})]
    assert kept([[0.9, 0, 0], [0.8, 0, 0], [0.7, 0, 0], [0, 0, 0]], given) == [((20, 20, 30, 30), "fox", 0.7)]


def test_a_phrase_of_several_boxes_says_so() -> None:
    found = choose(
        BOXES, torch.tensor([[0.9, 0, 0], [0, 0, 0], [0.8, 0, 0], [0, 0.4, 0]]), ASKED, (50, 50), [], Limits()
    )
    given = [Region((1, 2, 3, 4), {"de": "ein Igel"}, 2)]
    assert as_columns(found, given) == [
        {"bbox": [1, 2, 3, 4], "phrases": {"de": "ein Igel"}, "n_boxes": 2},
        {"bbox": [0, 0, 10, 10], "phrases": {"en": "fox"}, "n_boxes": 2, "score": 0.9, "source": "ngram"},
        {"bbox": [20, 20, 30, 30], "phrases": {"en": "fox"}, "n_boxes": 2, "score": 0.8, "source": "ngram"},
        {"bbox": [40, 40, 50, 50], "phrases": {"en": "red fox"}, "n_boxes": 1, "score": 0.4, "source": "ngram"},
    ]


def test_nothing_asked_or_nothing_seen_is_nothing_found() -> None:
    assert choose(BOXES, torch.zeros(4, 0), [], (50, 50), [], Limits()) == []
    assert choose(torch.zeros(0, 4), torch.zeros(0, 3), ASKED, (50, 50), [], Limits()) == []
    assert kept([[0.0, 0, 0]] * 4) == []


@pytest.fixture(scope="module", params=["owlv2", "owlvit"])
def owl(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an OWL of a few thousand random weights, as the hub would have it."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_detectors.save(request.param, folder)
    return folder


def picture(width: int, height: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_owls_say_what_transformers_says(owl: Path) -> None:
    loaded = load_detector(str(owl), torch.device("cpu"))
    assert isinstance(loaded, Owl)
    detector = Owl(loaded.model, loaded.images, loaded.tokenizer, templates=("{}",))
    images, sizes = [picture(40, 20), picture(24, 48, 1)], [(20, 40), (48, 24)]
    texts = [["red fox", "fox"], ["the square", "a photo of a fox"]]
    found = detector.detect(dict(detector.images(images, return_tensors="pt")), sizes, texts)
    ids = detector.tokenizer(sum(texts, []), padding="max_length", max_length=16, return_tensors="pt")
    pixels = detector.images(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        outputs = detector.model(ids["input_ids"], pixels, ids["attention_mask"])
    expected = detector.images.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
    for ours, theirs in zip(found, expected, strict=True):
        best = ours.scores.max(1)
        torch.testing.assert_close(ours.boxes, theirs["boxes"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(best.values, theirs["scores"], rtol=1e-5, atol=1e-6)
        assert torch.equal(best.indices, theirs["labels"])


def test_boxes_are_shares_of_what_the_processor_made_of_the_image(owl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = load_detector(str(owl), torch.device("cpu"))
    assert isinstance(detector, Owl)
    quarter = torch.tensor([0.25, 0.25, 0.5, 0.5])  # centre and sides: the upper left quarter
    monkeypatch.setattr(detector.model, "box_predictor", lambda features, grid: quarter.expand(*features.shape[:2], 4))
    wide = picture(40, 20)
    pixels = detector.images([wide], return_tensors="pt")["pixel_values"]
    found = detector.detect({"pixel_values": pixels}, [(20, 40)], [["fox"]])
    is_padded = detector.model.config.model_type == "owlv2"
    assert bool((pixels[0, :, 20:] == pixels[0, :, 31:, 31:]).all()) is is_padded  # below the image nothing but padding
    assert found[0].boxes[0].tolist() == ([0, 0, 20, 20] if is_padded else [0, 0, 20, 10])


def test_a_text_is_the_mean_of_its_templates_and_embedded_once(owl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = load_detector(str(owl), torch.device("cpu"))
    assert isinstance(detector, Owl)
    both = Owl(detector.model, detector.images, detector.tokenizer, templates=("a photo of a {}", "{}"))
    each = Owl(detector.model, detector.images, detector.tokenizer, templates=("{}",))
    with torch.no_grad():
        both.learn(["fox", "square"])
        each.learn(["fox", "a photo of a fox"])
    mean = each.known["fox"] + each.known["a photo of a fox"]
    torch.testing.assert_close(both.known["fox"], mean / mean.norm())
    monkeypatch.setattr(both.towers, "get_text_features", lambda *_: pytest.fail("embedded again"))
    both.learn(["square", "fox"])


def test_other_models_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="is a bert; give an OWL-ViT"):
        load_detector(str(tmp_path), torch.device("cpu"))
    (tmp_path / "config.json").write_text('{"model_type": "owlv2"}')
    with pytest.raises(UserError, match="can't be loaded"):
        load_detector(str(tmp_path), torch.device("cpu"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> GroundingDino:
    """A Grounding DINO of random weights, loaded from a folder as the hub would have it."""
    folder = tmp_path_factory.mktemp("dino")
    tiny_detectors.save("grounding-dino", folder)
    loaded = load_detector(str(folder), torch.device("cpu"))
    assert isinstance(loaded, GroundingDino)
    return loaded


def test_texts_stand_in_lines_between_full_stops(dino: GroundingDino) -> None:
    red, fox, square = (dino.tokenizer.convert_tokens_to_ids(word) for word in ("red", "fox", "square"))
    assert dino.lines(["red fox", "square"]) == [
        ([101, red, fox, 1012, square, 1012, 102], {0: slice(1, 3), 1: slice(4, 5)})
    ]
    lines = dino.lines(["red fox", "...", "square", "red red red red red", "fox"])  # the second has nothing to ask for
    assert [list(places) for _, places in lines] == [[0, 2], [3, 4]]
    assert all(len(ids) <= 12 for ids, _ in lines)
    assert len(dino.lines(["red " * 40])[0][0]) == 12


def test_grounding_dino_scores_a_text_by_the_mean_of_its_tokens(dino: GroundingDino) -> None:
    prepared = dict(dino.images([picture(48, 24)], return_tensors="pt"))
    found = dino.detect(prepared, [(24, 48)], [["red fox", "square"]])[0]
    ids = dino.lines(["red fox", "square"])[0][0]
    with torch.no_grad():
        seen = dino.model(**prepared, input_ids=torch.tensor([ids]))
    likely = seen.logits[0].sigmoid()
    torch.testing.assert_close(found.scores, torch.stack([likely[:, 1:3].mean(1), likely[:, 4]], 1))
    theirs = seen.pred_boxes[0] * torch.tensor([48, 24, 48, 24])
    torch.testing.assert_close((found.boxes[:, :2] + found.boxes[:, 2:]) / 2, theirs[:, :2])
    torch.testing.assert_close(found.boxes[:, 2:] - found.boxes[:, :2], theirs[:, 2:])


def test_grounding_dino_looks_once_a_line_and_is_not_moved_by_the_other_lines(dino: GroundingDino) -> None:
    prepared = dict(dino.images([picture(32, 32), picture(32, 32, 1)], return_tensors="pt"))
    texts = ["red red red red red", "fox fox fox fox fox", "square"]
    both = dino.detect(prepared, [(32, 32)] * 2, [texts, []])
    assert both[0].boxes.shape == (10, 4) and both[1].boxes.shape == (0, 4) and both[1].scores.shape == (0, 0)
    assert (both[0].scores[:5, 1:] == 0).all() and (both[0].scores[5:, 0] == 0).all()


class Stub:
    """A detector whose answers follow from the pixels: the whole image for its first text, a corner for its last."""

    calls = 0

    @staticmethod
    def images(pixels: Sequence[Tensor], return_tensors: str) -> dict[str, Tensor]:
        return {"brightness": torch.stack([image.float().mean() for image in pixels])}

    def detect(self, prepared: dict[str, Tensor], sizes: Sequence[Size], asked: Sequence[Sequence[str]]) -> list[Found]:
        Stub.calls += 1
        found = []
        for light, (height, width), texts in zip(prepared["brightness"], sizes, asked, strict=True):
            scores = torch.zeros(2, len(texts))
            scores[0, 0], scores[1, -1] = 0.5 + light / 1000, 0.4
            found.append(Found(torch.tensor([[0.0, 0, width, height], [0, 0, width / 3, height / 3]]), scores))
        return found


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eleven images of two splits; one is broken, one has no caption, one has a box already, two show one file."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for place in range(10):
        name = f"deep/{place}.png"
        Image.new("RGB", (30 + place, 20), (10 * place, 0, 0)).save(folder / name)
        rows.append(
            {"file_name": name, "captions": [f"a red fox number {place}"], "split": "val" if place > 7 else "train"}
        )
    (folder / "deep/3.png").write_bytes(b"no image")
    rows[4] = {"file_name": "deep/4.png", "label": 7, "split": "train"}
    rows[5]["regions"] = [{"bbox": [0, 0, 35, 20], "phrase": "given"}]
    rows[6] |= {
        "captions_i18n": [{"lang": "de", "text": "ein Fuchs", "source": "mt"}],
        "captions_synthetic": ["made up"],
    }
    rows.append({"file_name": "deep/0.png", "captions": ["a blue fox"], "label": 1, "split": "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> type[Stub]:
    monkeypatch.setattr(annotate_module, "load_detector", lambda name, device: Stub())
    Stub.calls = 0
    return Stub


def go(photos: Path, out: Path, *more: str) -> int:
    flags = ["--categories", "none", "--batch-size", "3", "--workers", "0"]
    return main(["annotate", str(photos), "--out", str(out), *flags, *more])


def written(out: Path) -> dict[str, bytes]:
    names = ("metadata.jsonl", "left_out.jsonl", "annotation.json")
    return {name: (out / name).read_bytes() for name in names}


def test_an_annotated_folder_is_a_source(
    photos: Path, tmp_path: Path, stub: type[Stub], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert go(photos, out) == 0
    said = capsys.readouterr().out
    assert "images: 10, of them with regions 9" in said and "left out: image can't be decoded: 1" in said
    train, val = Folder(str(out)), Folder(str(out), split="val")
    assert len(train) == 8 and len(val) == 2 and not train.skipped
    first = train.example(0)
    assert first.name == "images/deep/0.png" and first.captions[0].text == "a red fox number 0"
    assert [(region.bbox, region.phrases) for region in first.regions] == [
        ((0, 0, 30, 20), {"en": "red"}),
        ((0, 0, 10, 6.67), {"en": "a red fox number 0"}),
    ]
    by_name = {train.example(index).name: train.example(index) for index in range(len(train))}
    assert by_name["images/deep/4.png"].extras == {"label": 7} and not by_name["images/deep/4.png"].regions
    assert [region.phrases for region in by_name["images/deep/5.png"].regions] == [
        {"en": "given"},
        {"en": "a red fox number 5"},
    ]
    sixth = by_name["images/deep/6.png"]
    assert {(c.language, c.source) for c in sixth.captions} == {("en", "human"), ("de", "mt")}
    assert sixth.extras["captions_synthetic"][0].text == "made up"
    row = json.loads((out / "metadata.jsonl").read_text().splitlines()[0])
    assert row["regions"][0]["score"] == 0.5 and row["regions"][0]["source"] == "ngram"
    assert json.loads((out / "annotation.json").read_text())["threshold"] == 0.3
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 1000


def test_wherever_it_is_killed_the_same_command_ends_with_the_same_bytes(
    photos: Path, tmp_path: Path, stub: type[Stub]
) -> None:
    whole = tmp_path / "whole"
    assert go(photos, whole) == 0
    expected = written(whole)
    sizes = {name: len(expected[name]) for name in ("metadata.jsonl", "left_out.jsonl")}
    cuts = [
        (rows, left)
        for rows in (0, 1, 300, 777, sizes["metadata.jsonl"] - 1)
        for left in (0, 5, sizes["left_out.jsonl"])
    ]
    for number, (rows, left) in enumerate(cuts):
        out = tmp_path / str(number)
        out.mkdir()
        (out / "annotation.json").write_bytes(expected["annotation.json"])
        (out / "metadata.jsonl").write_bytes(expected["metadata.jsonl"][:rows])
        (out / "left_out.jsonl").write_bytes(expected["left_out.jsonl"][:left])
        shutil.copytree(whole / "images", out / "images")
        (out / "images/deep/9.png").rename(out / "images/deep/9.png.part")  # the last row is always written again
        assert go(photos, out) == 0
        assert written(out) == expected, (rows, left)
        assert sorted(path.name for path in (out / "images/deep").iterdir()) == [
            f"{n}.png" for n in (0, 1, 2, *range(4, 10))
        ]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("where", "when"),
    [
        ("rename", 1),
        ("rename", 2),
        ("rename", 7),
        ("detect", 1),
        ("detect", 3),
        ("fsync", 1),
        ("fsync", 2),
        ("fsync", 4),
    ],
)
def test_after_kill_9_the_same_command_ends_with_the_same_bytes(
    photos: Path, tmp_path: Path, stub: type[Stub], where: str, when: int
) -> None:
    """Settings or an image written and not yet named; a batch not yet seen; rows written, the last cut in two."""
    assert go(photos, tmp_path / "whole") == 0
    out = tmp_path / "out"
    child = os.fork()
    if child == 0:
        kill_at(where, when)
        go(photos, out)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert go(photos, out) == 0
    assert written(out) == written(tmp_path / "whole")
    assert sorted(path.name for path in (out / "images/deep").iterdir()) == [
        f"{n}.png" for n in (0, 1, 2, *range(4, 10))
    ]


def kill_at(where: str, when: int) -> None:
    """This process ends by SIGKILL where it calls that function for the `when`-th time."""
    place, name = {"rename": (Path, "rename"), "detect": (Stub, "detect"), "fsync": (os, "fsync")}[where]
    original, calls = getattr(place, name), count(1)

    def deadly(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == when:
            if where == "fsync":
                os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size - 9)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(place, name, deadly)


def test_what_is_done_is_not_done_again(photos: Path, tmp_path: Path, stub: type[Stub]) -> None:
    out = tmp_path / "out"
    assert go(photos, out, "--limit", "3") == 0
    assert stub.calls == 2  # three of train, both of val
    assert go(photos, out) == 0
    assert stub.calls == 4
    before = written(out)
    assert go(photos, out) == 0
    assert stub.calls == 4 and written(out) == before


def test_workers_change_nothing(photos: Path, tmp_path: Path, stub: type[Stub]) -> None:
    assert go(photos, tmp_path / "one") == 0
    assert go(photos, tmp_path / "two", "--workers", "1") == 0
    assert written(tmp_path / "one") == written(tmp_path / "two")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--threshold", "0.5"], "was begun with other settings (threshold: 0.3 before, 0.5 now)"),
        (["--batch-size", "4"], "was begun with other settings (batch_size: 3 before, 4 now)"),
        (["--threshold", "2"], "give numbers between 0 and 1"),
        (["--limit", "0"], "at least 1"),
        (["--categories", "nowhere"], "--categories nowhere can't be read"),
    ],
)
def test_other_settings_are_refused(
    photos: Path, tmp_path: Path, stub: type[Stub], capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert go(photos, tmp_path / "out") == 0
    capsys.readouterr()
    assert go(photos, tmp_path / "out", *more) == 2
    assert said in capsys.readouterr().err


def test_folders_that_hold_something_else_are_left_alone(
    photos: Path, tmp_path: Path, stub: type[Stub], capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(photos, photos) == 2 and "is the source itself" in capsys.readouterr().err
    (tmp_path / "thesis.txt").write_text("x")
    assert go(photos, tmp_path) == 2 and "holds other files" in capsys.readouterr().err
    assert go(photos, tmp_path / "thesis.txt") == 2 and "can't be used" in capsys.readouterr().err


def test_a_source_with_nothing_to_find_says_so(
    tmp_path: Path, stub: type[Stub], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"no image")
    (tmp_path / "photos/metadata.jsonl").write_text('{"file_name": "a.png", "caption": "a fox", "split": "train"}\n')
    assert go(tmp_path / "photos", tmp_path / "out") == 2
    assert "nothing could be annotated (left out: image can't be decoded: 1)" in capsys.readouterr().err


def test_a_random_owl_annotates_scenes_which_then_train(owl: Path, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "out"
    flags = [
        "--detector",
        str(owl),
        "--out",
        str(out),
        "--boxes",
        "3",
        "--threshold",
        "1e-9",
        "--limit",
        "16",
        "--workers",
        "0",
    ]
    assert main(["annotate", "scenes:drawings=20,objects=2,count=16,pixels=32", *flags]) == 0
    source = Folder(str(out))
    rows = [json.loads(line)["regions"] for line in (out / "metadata.jsonl").read_text().splitlines()]
    found = [sum("score" in region for region in regions) for regions in rows]
    assert len(source) == 16 and max(found) == 3 and all(count < len(r) for count, r in zip(found, rows, strict=True))
    summary = run(tmp_path / "run", data=[str(out)], steps=2, save_every=2)
    assert summary["steps"] == 2


def test_a_random_grounding_dino_annotates_photos(photos: Path, tmp_path: Path) -> None:
    tiny_detectors.save("grounding-dino", tmp_path / "dino")
    flags = ["--detector", str(tmp_path / "dino"), "--threshold", "1e-9", "--boxes", "2", "--limit", "3"]
    assert go(photos, tmp_path / "out", *flags) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    found = [region for row in rows for region in row["regions"] if "score" in region]
    assert found and max(sum("score" in region for region in row["regions"]) for row in rows) == 2
    for row in rows:
        for region in row["regions"]:
            x1, y1, x2, y2 = region["bbox"]
            assert 0 <= x1 < x2 <= row["width"] and 0 <= y1 < y2 <= row["height"]
