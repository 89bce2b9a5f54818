"""What each optimizer does to a weight, what it keeps, and that a run goes on with it bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHAPE, Small
from forkserver import start_ranks
from safetensors.torch import load_file, save_file
from schedulefree import AdamWScheduleFree, AdamWScheduleFreeReference
from test_resume import assert_same_end, cut_short
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from opensiglip.checkpoints.manifest import write_manifest
from opensiglip.checkpoints.run_folder import manifest_of
from opensiglip.data.text import TextPipeline
from opensiglip.distributed import meeting
from opensiglip.errors import UserError
from opensiglip.models.sizes import SHAPES
from opensiglip.optim import rate
from opensiglip.training.checkpoint import restored
from opensiglip.training.config import OptimizerName
from opensiglip.training.learner import Learner
from opensiglip.training.optimizers import muon as muon_file
from opensiglip.training.optimizers.make import averaged, decays, end_training, fresh, go_on_training, make
from opensiglip.training.optimizers.muon import hidden_matrices
from opensiglip.training.run import train
from opensiglip.training.sharding import gather

NAMES: tuple[OptimizerName, ...] = ("muon", "adafactor", "schedule-free-adamw")
LR, DECAY, BETAS = 0.01, 0.2, (0.9, 0.95)


def by_hand(weight: np.ndarray, grads: list[np.ndarray], decay: float) -> np.ndarray:
    """big_vision's Adafactor as its equations are written; the momentum is rounded to bfloat16 between steps."""
    rows, columns, whole, momentum = 0.0, 0.0, np.zeros(weight.shape), np.zeros(weight.shape)
    factored = weight.ndim == 2 and min(weight.shape) >= 32
    for step, grad in enumerate(grads, 1):
        keep, squares = min(BETAS[1], 1 - step**-0.8), grad**2 + 1e-30
        rows = keep * rows + (1 - keep) * squares.mean(-1)
        columns = keep * columns + (1 - keep) * squares.mean(0)
        whole = keep * whole + (1 - keep) * squares
        second = np.outer(rows, columns) / np.mean(rows) if factored else whole
        momentum = BETAS[0] * momentum + (1 - BETAS[0]) * grad / np.sqrt(second)
        weight = weight - LR * momentum - LR * decay * weight
        momentum = torch.from_numpy(momentum).bfloat16().double().numpy()
    return weight


@pytest.mark.parametrize("shape", [(40, 33), (31, 50), (64,), (2, 40, 33)])
def test_adafactor_is_big_visions_by_hand(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    module = nn.Linear(shape[-1], shape[0], bias=False).double() if len(shape) == 2 else nn.Module()
    parameter = nn.Parameter(torch.from_numpy(rng.normal(size=shape)))
    module.weight = parameter
    start, grads = parameter.detach().numpy().copy(), [rng.normal(size=shape) for _ in range(4)]
    optimizer = make("adafactor", module, LR, DECAY, betas=BETAS)
    for grad in grads:
        parameter.grad = torch.from_numpy(grad)
        optimizer.step()
    expected = by_hand(start, grads, DECAY if len(shape) == 2 else 0.0)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=0, atol=1e-12)
    assert float(optimizer.state[parameter]["step"]) == 4
    assert optimizer.state[parameter].keys() == fresh(optimizer, parameter).keys()


@pytest.mark.parametrize("library", [AdamWScheduleFree, AdamWScheduleFreeReference])
def test_schedule_free_adamw_is_the_librarys(library: type[torch.optim.Optimizer]) -> None:
    def module() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 4)).double()

    ours, theirs = module(), module()
    optimizer = make("schedule-free-adamw", ours, LR, DECAY, betas=BETAS)
    matrices, others = [theirs[0].weight, theirs[2].weight], [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    reference: Any = library(groups, lr=LR, betas=BETAS)  # type: ignore[call-arg]
    reference.train()
    torch.manual_seed(1)
    for step in range(7):
        for group in (*optimizer.param_groups, *reference.param_groups):
            group["lr"] = LR * rate(step, 7, 3, decays=decays(optimizer))  # 0 at first, and then a warm-up
        x = torch.randn(5, 8, dtype=torch.float64)
        for one, stepping in ((ours, optimizer), (theirs, reference)):
            one.zero_grad()
            one(x).square().sum().backward()
            stepping.step()
    close = {"atol": 1e-12, "rtol": 0}
    trained = [p.detach().clone() for p in ours.parameters()]
    torch.testing.assert_close(trained, [p.detach() for p in theirs.parameters()], **close)
    reference.eval()
    with averaged(optimizer):
        judged = [p.detach().clone() for p in ours.parameters()]
        torch.testing.assert_close(judged, [p.detach() for p in theirs.parameters()], **close)
        assert not any(torch.equal(x, y) for x, y in zip(judged, trained, strict=True))
        assert optimizer.state[ours[0].weight].keys() == fresh(optimizer, ours[0].weight).keys()
    assert all(torch.equal(x, y) for x, y in zip(ours.parameters(), trained, strict=True)), "to the bit"


def test_only_a_schedule_that_is_free_keeps_its_rate() -> None:
    assert [rate(step, 10, 2, decays=False) for step in (0, 1, 2, 6, 9)] == [0, 0.5, 1, 1, 1]
    assert rate(9, 10, 2) < 0.1 and decays(make("adamw", nn.Linear(2, 2), LR, DECAY))


def test_a_run_saves_and_exports_the_averages(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", SHAPE)
    settings: dict[str, Any] = {"size": "tiny", "resolution": 32, "batch_size": 8, "workers": 0, "held_out": 4}
    settings |= {"steps": 4, "precision": "fp32", "memory_check": False, "data": folder, "vocabulary": 300}
    settings |= {"optimizer": "schedule-free-adamw", "eval_every": 2}
    train("siglip", out=tmp_path / "run", **settings)
    saved, name = tmp_path / "run/checkpoints/step-00000004", "model.text.tower.head.weight"
    weights, state = load_file(saved / "learner.safetensors"), load_file(saved / "optimizer.safetensors")
    y, z, x = state[f"{name}/y"], state[f"{name}/z"], weights[name]
    torch.testing.assert_close(y, 0.1 * z + 0.9 * x, atol=1e-7, rtol=1e-5)
    assert not torch.equal(x, y)
    assert torch.equal(load_file(tmp_path / "run/model/model.safetensors")["text_model.head.weight"], x)


def test_muon_takes_the_matrices_between_hidden_features_and_adamw_the_rest(
    small: Small, pipeline: TextPipeline
) -> None:
    learner = Learner.new(small("siglip2", token_weight=1.0), pipeline)
    taken = hidden_matrices(learner)
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    names = {name for name, p in trained.items() if id(p) in taken}
    assert {name for name in names if "layers" not in name and "blocks" not in name} == {
        "model.vision.tower.head.mlp.fc1.weight",
        "model.vision.tower.head.mlp.fc2.weight",
        "model.vision.tower.head.attention.out_proj.weight",
        "model.text.tower.head.weight",
    }
    left = set(trained) - names
    for word in (
        "embedding",
        "norm",
        "bias",
        "vocabulary",
        "prototypes",
        "probe",
        "logit_scale",
        "token_classification",
    ):
        assert any(word in name for name in left) and not any(word in name for name in names), word


@pytest.mark.parametrize("fast", [True, False])
def test_muon_beside_adamw_is_torchs_two_optimizers(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit where bfloat16 is fast; in float32 elsewhere, which differs by what bfloat16 rounds."""
    monkeypatch.setattr(muon_file, "multiplies_bf16", lambda device: fast)

    def module() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 4))

    ours, theirs = module(), module()
    matrices = [theirs[0].weight, theirs[2].weight]
    others = [p for p in theirs.parameters() if all(p is not one for one in matrices)]
    muon = torch.optim.Muon(matrices, lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=LR, betas=BETAS, weight_decay=0.0, fused=True)
    optimizer = make("muon", ours, LR, DECAY, betas=BETAS)
    for step in range(3):
        for group in (*optimizer.param_groups, *muon.param_groups, *adamw.param_groups):
            group["lr"] = LR / (step + 1)  # as the schedule sets it
        x = torch.randn(50, 8)  # full rank: what bfloat16 rounds of a null singular value grows to 1
        for one, steps in ((ours, [optimizer]), (theirs, [muon, adamw])):
            one.zero_grad()
            one(x).square().sum().backward()
            for part in steps:
                part.step()
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(torch.equal(x, y) for x, y in pairs) == fast
    for x, y in pairs:
        torch.testing.assert_close(x, y, atol=0.02 * LR, rtol=0)
    for parameter in ours.parameters():
        assert optimizer.state[parameter].keys() == fresh(optimizer, parameter).keys()


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_muons_update_in_float32_is_its_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    """Newton and Schulz's steps act on singular values alone: s <- a s + b s^3 + c s^5."""
    update = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    group = torch.optim.Muon([nn.Parameter(update.clone())]).param_groups[0]
    u, s, v = torch.linalg.svd(update.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    kept = update.clone()
    found = muon_file.orthogonal(update, group, torch.float32)
    torch.testing.assert_close(found.double(), u @ s.diag() @ v, atol=1e-5, rtol=0)
    assert torch.equal(update, kept)  # the momentum, which is read again


def test_muon_without_a_matrix_to_train_is_refused_in_a_sentence(small: Small, pipeline: TextPipeline) -> None:
    learner = Learner.new(small("siglip"), pipeline)
    for tower in (learner.model.vision, learner.model.text):
        tower.requires_grad_(False)
    with pytest.raises(UserError, match="--optimizer muon: no linear layer is trained.*give adamw"):
        make("muon", learner, LR, DECAY)


def test_muon_keeps_the_slower_rate_of_weights_that_were_loaded() -> None:
    module = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 4))
    optimizer = make("muon", module, LR, DECAY, slowed=("0.weight", "0.bias"), factor=0.1)
    found = {
        id(p): (group["factor"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    wanted = [(0.1, 10 * DECAY), (0.1, 0.0), (1.0, DECAY), (1.0, 0.0)]
    assert [found[id(p)] for p in module.parameters()] == [pytest.approx(pair) for pair in wanted]


def sharded_module(ranks: int) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 67), nn.LayerNorm(67), nn.Linear(67, 33)).double()
    if ranks > 1:
        mesh = init_device_mesh("cpu", (ranks,))
        for part in module:
            fully_shard(part, mesh=mesh)
        fully_shard(module, mesh=mesh)
    return module


def three_steps(name: OptimizerName, ranks: int) -> dict[str, Tensor]:
    """Weights and state after three steps on the same batch on every rank, whole; the state goes through a copy."""
    module = sharded_module(ranks)
    optimizer = make(name, module, LR, DECAY)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        module(torch.randn(5, 40, generator=generator, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        end_training(optimizer)
        for parameter in module.parameters():
            kept = gather({key: torch.as_tensor(x) for key, x in optimizer.state[parameter].items()})
            optimizer.state[parameter] = restored(fresh(optimizer, parameter), kept)
        go_on_training(optimizer)
    end_training(optimizer)
    found = dict(module.named_parameters())
    state = {f"{at}/{key}": torch.as_tensor(x) for at, p in found.items() for key, x in optimizer.state[p].items()}
    return gather(found | state)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    with meeting(Path(folder) / "meeting", rank, 2):
        for name in ("adamw", *NAMES):
            torch.save(three_steps(name, 2), f"{folder}/{name} {rank}")


def test_sharded_ranks_step_as_one_does(tmp_path: Path) -> None:
    start_ranks(work, (str(tmp_path),), 2)
    for name in ("adamw", *NAMES):
        alone = three_steps(name, 1)
        for rank in range(2):
            found = torch.load(tmp_path / f"{name} {rank}")
            assert found.keys() == alone.keys()
            for key, value in alone.items():
                # Adafactor's sums over rows are in another order, so its momentum may be rounded the other way.
                close = 1e-12 if name != "adafactor" else 5e-3 if key.endswith("momentum") else 1e-4
                torch.testing.assert_close(found[key], value, rtol=close, atol=close)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_cut_short_goes_on_bit_for_bit_and_its_state_is_checked(
    name: OptimizerName, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", SHAPE)
    settings: dict[str, Any] = {"size": "tiny", "resolution": 32, "batch_size": 8, "workers": 0, "held_out": 0}
    settings |= {"steps": 4, "save_every": 2, "precision": "fp32", "memory_check": False, "data": folder}
    settings |= {"vocabulary": 300, "optimizer": name}
    train("siglip", out=tmp_path / "straight", **settings)
    often = settings | {"save_every": 1}  # a checkpoint changes nothing of what comes after
    cut_short(3, lambda: train("siglip", out=tmp_path / "cut", **often))
    train("siglip", out=tmp_path / "cut", resume=True, **often)
    assert_same_end(tmp_path / "cut", tmp_path / "straight", 4)
    saved = tmp_path / "cut/checkpoints/step-00000004"
    state = load_file(saved / "optimizer.safetensors")
    kinds = {key.rpartition("/")[2] for key in state}
    adamws = {"step", "exp_avg", "exp_avg_sq"}
    adafactors = {"step", "momentum", "rows", "columns", "exp_avg_sq"}
    kept, wrong_one = {
        "muon": (adamws | {"momentum_buffer"}, "momentum_buffer"),
        "adafactor": (adafactors, "rows"),
        "schedule-free-adamw": ({"step", "rates", "z", "exp_avg_sq", "y"}, "z"),
    }[name]
    assert kinds == kept
    wrong = next(key for key in state if key.endswith(f"/{wrong_one}"))
    (saved / "optimizer.safetensors").unlink()
    save_file(state | {wrong: torch.zeros(3)}, saved / "optimizer.safetensors")
    manifest_of(saved).unlink()
    write_manifest(saved, 4)
    with pytest.raises(UserError, match=rf"has {wrong} as \[3\], here it is"):
        train("siglip", out=tmp_path / "cut", resume=True, **settings)
    with pytest.raises(UserError, match=rf"optimizer: '{name}' before, 'adamw' now"):
        train("siglip", out=tmp_path / "straight", resume=True, **settings | {"optimizer": "adamw"})
    with pytest.raises(UserError, match="step-00000004 lacks .*: it is of another recipe"):
        train("siglip", out=tmp_path / "straight", resume=True, changed=True, **settings | {"optimizer": "adamw"})
