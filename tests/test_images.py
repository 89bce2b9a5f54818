"""Images and their files: the same pixels however an image comes, and names found as the disk spells them."""

import io
import json
import sys
import types
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources import images as images_module
from opensiglip.data.sources.files import Files
from opensiglip.data.sources.folder import Folder
from opensiglip.data.sources.images import decode_image_bytes, jpeg_size, read_image
from opensiglip.errors import UserError
from opensiglip.inference.images import load_image

RAMP = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (32, 1))
COLOURED = Image.fromarray(np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 80)], -1))
WIDE = RAMP.astype(np.uint16) * 256 + 77  # sixteen bits, of which the lower eight are to go

KINDS = {
    "rgb.png": COLOURED,
    "rgb.jpg": COLOURED,
    "rgb.webp": COLOURED,
    "grey.png": COLOURED.convert("L"),
    "grey.jpg": COLOURED.convert("L"),
    "alpha.png": COLOURED.convert("RGBA"),
    "greyalpha.png": COLOURED.convert("LA"),
    "palette.png": COLOURED.convert("P"),
    "palette.gif": COLOURED.convert("P"),
    "bits.png": COLOURED.convert("1"),
    "cmyk.jpg": COLOURED.convert("CMYK"),
    "cmyk.tiff": COLOURED.convert("CMYK"),
    "sixteen.png": Image.fromarray(WIDE),
    "sixteen.tiff": Image.fromarray(WIDE),
    "floats.tiff": Image.fromarray(RAMP.astype(np.float32) / 255),
    "integers.tiff": Image.fromarray(RAMP.astype(np.int32)),
    "lab.tiff": COLOURED.convert("LAB"),
}
REFUSED = {"floats.tiff", "integers.tiff"}


def in_folder(path: Path) -> Tensor:
    row = {"file_name": path.name, "caption": "a ramp", "split": "train"}
    (path.parent / "metadata.jsonl").write_text(json.dumps(row))
    return Folder(str(path.parent)).example(0).image


@pytest.mark.parametrize("name", KINDS)
def test_an_image_is_the_same_by_path_as_a_pil_image_and_in_a_folder_or_refused_in_all(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    KINDS[name].save(path)
    if name in REFUSED:
        with pytest.raises(UserError, match="32 bits a channel"):
            load_image(path)
        with Image.open(path) as image, pytest.raises(UserError, match="32 bits a channel"):
            load_image(image)
        with pytest.raises(BrokenExample, match="32 bits a channel"):
            in_folder(path)
        return
    pixels = load_image(path)
    assert pixels.shape == (3, 32, 64) and pixels.dtype == torch.uint8
    with Image.open(path) as opened:
        assert torch.equal(pixels, load_image(opened)) and torch.equal(pixels, in_folder(path))


@pytest.mark.parametrize("name", ["sixteen.png", "sixteen.tiff"])
def test_of_sixteen_bits_the_upper_eight_are_kept(name: str, tmp_path: Path) -> None:
    KINDS[name].save(tmp_path / name)
    assert torch.equal(read_image(tmp_path / name), torch.from_numpy(RAMP).expand(3, -1, -1))


HEIC = bytes.fromhex("0000001866747970") + b"heic\0\0\0\0mif1heic" + b"\0" * 200
AVIF = bytes.fromhex("0000001866747970") + b"mif1\0\0\0\0mif1avif" + b"\0" * 200


def jpeg(image: Image.Image, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **how)
    return file.getvalue()


def test_the_frame_of_a_jpeg_is_found_as_pil_finds_it_and_of_no_other_file() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 3000
    for how in ({}, {"progressive": True}, {"exif": exif, "comment": b"\xff\xc0" * 50}, {"restart_marker_rows": 1}):
        for image in (COLOURED, COLOURED.convert("L")):
            data = jpeg(image, **how)
            assert jpeg_size(data) == (32, 64)
            assert all(jpeg_size(data[:end]) in (None, (32, 64)) for end in range(0, len(data), 7))
    png = io.BytesIO()
    COLOURED.save(png, "PNG")
    assert all(
        jpeg_size(data) is None for data in (jpeg(COLOURED.convert("CMYK")), png.getvalue(), b"\xff\xd8\xff", b"")
    )


def test_a_jpeg_that_says_it_is_huge_is_refused_before_a_pixel_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(COLOURED)
    at = data.index(b"\xff\xc0") + 5
    huge = data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]
    monkeypatch.setattr(images_module, "decode_image", None)
    with pytest.raises(BrokenExample, match="image over 64 megapixels"):
        decode_image_bytes(huge)


def test_heic_is_said_by_name_and_read_where_its_reader_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("photo.heic", "photo.jpg"):
        (tmp_path / name).write_bytes(HEIC)
        with pytest.raises(BrokenExample, match="^HEIC image: pip install pillow-heif, or save it as JPEG$"):
            read_image(tmp_path / name)
    (tmp_path / "other").write_bytes(AVIF)
    with pytest.raises(BrokenExample, match="^image can't be decoded$"):
        read_image(tmp_path / "other")

    # As pillow-heif does it: registering adds a format by the name of HEIF to those that PIL opens.
    class Reader(Image.Image):
        format = "HEIF"

        def __init__(self) -> None:
            super().__init__()
            self.__dict__ |= COLOURED.__dict__

    def register() -> None:
        Image.register_open("HEIF", lambda file, name: Reader(), lambda start: start[4:12] == b"ftypheic")

    package = types.ModuleType("pillow_heif")
    package.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    package.register_heif_opener = register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    for table in ("OPEN", "ID"):
        monkeypatch.setattr(Image, table, getattr(Image, table).copy())
    assert torch.equal(read_image(tmp_path / "photo.heic"), load_image(COLOURED))


@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_the_other_normal_form_are_found(written: str, stored: str, tmp_path: Path) -> None:
    name = "Bücher/größer Å.png"
    path = tmp_path / unicodedata.normalize(stored, name)  # type: ignore[arg-type]
    path.parent.mkdir()
    COLOURED.save(path)
    row = {"file_name": unicodedata.normalize(written, name), "caption": "books", "split": "train"}  # type: ignore[arg-type]
    again = row | {"file_name": unicodedata.normalize(stored, name), "caption": "more books"}  # type: ignore[arg-type]
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(again))
    source = Folder(str(tmp_path))
    assert [caption.text for caption in source.example(0).captions] == ["books", "more books"]
    assert len(source) == 1 and source.example(0).image.shape == (3, 32, 64)


def test_a_file_whose_name_is_not_utf8_disturbs_none_of_the_others(tmp_path: Path) -> None:
    COLOURED.save(tmp_path / "a.png")
    (tmp_path / "a.png").with_name("m\udcfcll.png").write_bytes(b"")
    files = Files(tmp_path)
    assert files.find("a.png") == "a.png"
    for missing in ("müll.png", "b.png"):
        with pytest.raises(BrokenExample, match="image file is missing"):
            files.find(missing)


def test_a_name_in_the_other_normal_form_stays_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    COLOURED.save(tmp_path / "out.png")
    (tmp_path / "data" / unicodedata.normalize("NFD", "Bücher")).symlink_to(tmp_path)
    with pytest.raises(BrokenExample, match="path leaves the folder"):
        Files(tmp_path / "data").find(unicodedata.normalize("NFC", "Bücher/out.png"))
