"""Positions and patch kernels for another image or patch size, against references of other makes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPE, SIDE
from timm.layers import resample_patch_embed
from torch import Tensor

from opensiglip.checkpoints.contents import Contents
from opensiglip.checkpoints.fit import OURS, fit
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.fields.frame import Frame
from opensiglip.models.model import Model
from opensiglip.models.resize import resize_patches, resize_positions, stretch_positions
from opensiglip.models.sizes import Architecture
from opensiglip.training.run import train


def kernel(side: int) -> Tensor:
    return torch.randn(5, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def resized(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


@pytest.mark.parametrize(("old", "new"), [(14, 16), (8, 12)])
def test_a_grown_kernel_gives_grown_patches_the_embeddings_of_the_patches(old: int, new: int) -> None:
    patches = torch.randn(20, 3, old, old, dtype=torch.float64)
    before = torch.einsum("bcyx,dcyx->bd", patches, kernel(old))
    after = torch.einsum("bcyx,dcyx->bd", resized(patches, new), resize_patches(kernel(old), new))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-10)


def test_a_shrunk_kernel_gives_patches_without_fine_detail_their_embeddings() -> None:
    """Patches of 16 that a shrunk one of 14 still tells wholly apart: the row space of the resizing matrix."""
    matrix = resized(torch.eye(256, dtype=torch.float64).view(256, 1, 16, 16), 14).flatten(1)  # [256, 196]
    patches = (torch.randn(20, 3, 196, dtype=torch.float64) @ matrix.T).unflatten(-1, (16, 16))
    before = torch.einsum("bcyx,dcyx->bd", patches, kernel(16))
    after = torch.einsum("bcyx,dcyx->bd", resized(patches, 14), resize_patches(kernel(16), 14))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)


def test_no_other_kernel_of_that_size_is_closer() -> None:
    """Over all patches the shrunk kernel's error is a minimum: any small change of it makes the error larger."""
    matrix = resized(torch.eye(256, dtype=torch.float64).view(256, 1, 16, 16), 14).flatten(1)
    shrunk = resize_patches(kernel(16), 14).flatten(2)
    error = (shrunk @ matrix.T - kernel(16).flatten(2)).square().sum()
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        other = shrunk + 1e-3 * torch.randn(shrunk.shape, dtype=torch.float64, generator=generator)
        assert (other @ matrix.T - kernel(16).flatten(2)).square().sum() > error


@pytest.mark.parametrize(("old", "new"), [(14, 16), (16, 14), (16, 32)])
def test_kernels_are_those_of_timm(old: int, new: int) -> None:
    theirs = resample_patch_embed(kernel(old).float(), [new, new], interpolation="bilinear", antialias=False)
    torch.testing.assert_close(resize_patches(kernel(old).float(), new), theirs, rtol=0, atol=1e-4)


def test_positions_of_the_same_grid_are_untouched_and_a_plane_stays_a_plane() -> None:
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    table = torch.stack([x.flatten(), y.flatten(), torch.ones(64)], 1)
    assert resize_positions(table, 8, 8) is table
    larger = resize_positions(table, 16, 16).unflatten(0, (16, 16))
    steps = larger[1:-1, 2:-1, 0] - larger[1:-1, 1:-2, 0]
    torch.testing.assert_close(steps, torch.full_like(steps, 0.5))
    torch.testing.assert_close(larger[..., 2], torch.ones(16, 16))
    wide = resize_positions(table, 4, 16).unflatten(0, (4, 16))
    torch.testing.assert_close(wide[..., 0], larger[:4, :, 0])
    assert wide[1:, 5, 1].gt(wide[:-1, 5, 1]).all(), "rows are y"


def test_official_positions_are_resized_as_big_vision_resizes_them() -> None:
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0]])  # a 2 x 2 table of rows 0 1 / 2 3
    expected = torch.tensor([2 * row / 3 + column / 3 for row in range(4) for column in range(4)])  # corners stay
    torch.testing.assert_close(resize_positions(line, 4, 4, corner_aligned=True).flatten(), expected)
    assert float((resize_positions(line, 4, 4).flatten() - expected).abs().max()) > 0.05
    ndimage = pytest.importorskip("scipy.ndimage")
    table = torch.randn(256, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for side in (24, 14, 7):
        zoomed = ndimage.zoom(table.unflatten(0, (16, 16)).numpy(), (side / 16, side / 16, 1), order=1)
        ours = resize_positions(table, side, side, corner_aligned=True)
        assert float((ours - torch.from_numpy(zoomed).flatten(0, 1)).abs().max()) < 1e-12


def test_only_official_weights_of_fixed_resolution_are_resized_so(tmp_path: Path) -> None:
    opened = Pretrained.open(peers.siglip2(tmp_path).folder)
    larger = replace(opened.model.architecture, resolution=64)
    name = "vision.tower.embeddings.position_embedding.weight"
    table = opened.model.state_dict()[name]
    for start, official in ((opened, True), (replace(opened, format=OURS), False)):
        model = Model.new(larger, opened.model.vocabulary)
        fit(model, start)
        assert torch.equal(model.state_dict()[name], resize_positions(table, 8, 8, corner_aligned=official))


def test_a_longer_text_keeps_its_first_positions_and_its_last() -> None:
    name, table = "text.tower.embeddings.position_embedding.weight", torch.randn(24, 3, dtype=torch.float64)
    grown = stretch_positions(name, table, torch.empty(30, 3))
    assert torch.equal(grown[:20], table[:20]) and torch.equal(grown[-1], table[-1]) and len(grown) == 30
    places = np.linspace(0, 3, 10)  # of the ten that are left, in the four that were
    for column in range(3):
        expected = np.interp(places, np.arange(4), table[20:, column].numpy())
        np.testing.assert_allclose(grown[20:, column].numpy(), expected, rtol=0, atol=1e-12)
    short = torch.randn(4, 3)
    grown = stretch_positions(name, short, torch.empty(9, 3))  # the third and fourth in seven places
    assert torch.equal(grown[:3], short[:3])
    torch.testing.assert_close(grown[5], (short[2] + short[3]) / 2)
    assert stretch_positions(name, table, torch.empty(20, 3)) is table, "shorter ones are refused, not cut"
    assert stretch_positions("vision.tower.embeddings.position_embedding.weight", table, torch.empty(30, 3)) is table


def test_a_decoder_of_longer_texts_says_the_same_of_short_ones() -> None:
    """It looks at no later token, so up to the twentieth nothing has changed."""
    old, new = (Model.new(Architecture(32, 8, length, SHAPE, None, SHAPE), 60).eval() for length in (24, 40))
    fit(new, Contents("old", old, Frame(32), OURS))
    assert old.decoder is not None and new.decoder is not None
    ids, places = torch.randint(60, (2, 20)), torch.arange(20).expand(2, 20)
    row = ids, places, torch.zeros_like(ids), torch.zeros(2, 20, dtype=torch.bool), torch.randn(2, 16, SHAPE.width)
    with torch.no_grad():
        torch.testing.assert_close(new.decoder(*row), old.decoder(*row), rtol=0, atol=1e-6)
        assert not torch.equal(new.decoder.position[22], old.decoder.position[22])


def test_a_run_begins_with_longer_texts_than_its_checkpoint(folder: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"data": [folder], "steps": 1, "batch_size": 4, "workers": 0, "held_out": 0}
    given |= {"precision": "fp32", "distill_start": 1.0}
    train("siglip2", out=tmp_path / "short", size="32x2x64x2/8", resolution=SIDE, length=24, vocabulary=300, **given)
    train("siglip2", out=tmp_path / "long", init=str(tmp_path / "short"), length=40, lr=1e-9, **given)
    short, long = (Pretrained.open(str(tmp_path / name)) for name in ("short", "long"))
    assert short.pipeline is not None and long.pipeline is not None
    assert (short.pipeline.policy.length, long.pipeline.policy.length) == (24, 40)
    for part in ("text.tower.embeddings.position_embedding.weight", "decoder.position"):
        before, after = short.model.state_dict()[part], long.model.state_dict()[part]
        assert len(after) == 40
        torch.testing.assert_close(after[:20], before[:20], rtol=0, atol=1e-6)
