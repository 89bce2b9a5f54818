"""`opensiglip plan` against measured steps: memory, FLOP, and the costs that papers state."""

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.measure import positive, start


@dataclass(frozen=True)
class Case:
    """A step that is planned and run."""

    recipe: str
    size: str
    resolution: int
    batch: int
    precision: str = "no"
    progress: float = 0.0  # 1: of the last stage
    parts: int = 1
    checkpointing: bool = False

    def __str__(self) -> str:
        more = [f"in {self.parts} parts"] if self.parts > 1 else []
        more += ["checkpointed"] if self.checkpointing else []
        more += ["last stage"] if self.progress else []
        precision = "fp32" if self.precision == "no" else self.precision
        return ", ".join([f"{self.recipe} {self.size} at {self.resolution} px, {self.batch} images {precision}", *more])


CASES = (
    Case("siglip", "tiny", 64, 128),
    Case("siglip2", "tiny", 64, 64, progress=1.0),
    Case("siglip", "S/32", 224, 32),
    Case("siglip", "S/32", 224, 32, parts=4),
    Case("siglip", "S/32", 224, 32, checkpointing=True),
    Case("siglip", "S/16", 224, 16),
)
VOCABULARY = 8192


def bench(cases: tuple[int, ...] = (0, 1, 2, 3, 4, 5), papers: bool = True) -> None:
    """Planned memory and FLOP against measured steps in separate processes; planned costs against published ones.

    Memory is the peak of VmHWM over the level before the networks are made, with freed memory kept as `train` keeps it.
    FLOP are what torch's counter sees of the step with plain attention and opened losses.

    Args:
        cases: built-in steps to measure, by number; 99 measures none.
        papers: also print the costs of published runs.
    """
    positive(cases=tuple(case + 1 for case in cases))
    print(f"{'step':<62}{'MiB':>8}{'planned':>9}{'off':>7}{'GFLOP':>11}{'planned':>11}{'off':>8}")
    for case in (CASES[number] for number in cases if number < len(CASES)):
        done = {
            way: json.loads(
                subprocess.run(
                    [sys.executable, "-c", f"from benchmarks import plan; plan.{way}({vars(case)!r})"],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.splitlines()[-1]
            )
            for way in ("planned", "memory", "counted")
        }
        need, flop = done["planned"]
        real, counted = done["memory"], done["counted"]
        print(
            f"{case!s:<62}{real:>8.0f}{need:>9.0f}{need / real - 1:>+7.1%}{counted:>11.2f}{flop:>11.2f}"
            f"{flop / counted - 1:>+8.2%}",
            flush=True,
        )
    if papers:
        from benchmarks.papers import costs

        print(f"\n{costs()}")


def planned(case: dict[str, Any]) -> None:
    """Print MiB and GFLOP of a step by plan."""
    from opensiglip.training.planning.networks import meta_learner
    from opensiglip.training.planning.shapes import batch_shapes
    from opensiglip.training.planning.step import Setting, fake_step

    asked = Case(**case)
    data = _data(asked)
    learner = meta_learner(_recipe(asked), data.pipeline)
    setting = Setting("cpu", asked.precision, parts=asked.parts, checkpointing=asked.checkpointing)
    step = fake_step(learner, batch_shapes(data, asked.progress)[0], asked.progress, setting)
    print(json.dumps([step.memory.total / 2**20, step.flops.total / 1e9]))


def memory(case: dict[str, Any]) -> None:
    """Print the MiB that three steps of `train` take at most."""
    from opensiglip.training.memory import keep_freed_memory

    asked = Case(**case)
    data = _data(asked)
    keep_freed_memory()
    before = _status("VmRSS")
    step = _step(asked, data)
    for number in range(3):
        step(number)
    print(json.dumps(_status("VmHWM") - before))


def counted(case: dict[str, Any]) -> None:
    """Print the GFLOP that torch's counter sees in a step."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from opensiglip.losses.cross_entropy import _linear_cross_entropy
    from opensiglip.losses.pairwise import _ring_sigmoid, _ring_softmax

    asked = Case(**case)
    step = _step(asked, _data(asked))
    opened = {
        op._opoverload._overloadpacket: _opened(op) for op in (_linear_cross_entropy, _ring_sigmoid, _ring_softmax)
    }
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=opened) as counter:
        step(0)
    print(json.dumps(counter.get_total_flops() / 1e9))


def _opened(op: Any) -> Any:
    """A formula for torch's counter that runs the custom operation's own code once more and counts that."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # torch's counter passes over products that are added in place.
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}

    def formula(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        with FlopCounterMode(display=False, custom_mapping=in_place) as inner:
            op._init_fn(*args, **kwargs)
        return int(inner.get_total_flops())

    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


def _data(case: Case) -> Any:
    from opensiglip.training.planning.request import data_plan

    return replace(data_plan(_recipe(case), ("scenes",), case.batch, VOCABULARY), parts=case.parts)


def _recipe(case: Case) -> Any:
    from opensiglip.recipes import build_recipe, find_recipe

    return build_recipe(find_recipe(case.recipe), {"size": case.size, "resolution": case.resolution})


def _step(case: Case, data: Any) -> Any:
    """One optimizer step, as the loop takes it."""
    import torch

    from opensiglip.data.loader import Steps, to_device
    from opensiglip.optim import adamw
    from opensiglip.training.accumulate import accumulate
    from opensiglip.training.learner import Learner, denominators

    start("cpu")
    learner = Learner.new(_recipe(case), data.pipeline)
    if case.checkpointing:
        learner.model.checkpoint_activations()
    optimizer = adamw(learner, 1e-3, 0.1)
    learner.activate(case.progress)
    learner.train()
    dtype = {"bf16": torch.bfloat16}.get(case.precision)

    def forward(*inputs: Any, **named: Any) -> Any:
        with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
            return learner(*inputs, **named)

    def step(number: int) -> None:
        batch = Steps(replace(data, steps=1))[1 if case.progress else 0]
        parts = [to_device(part, torch.device("cpu")) for part in batch.parts]
        live = denominators(learner, parts).float()
        _, notes = accumulate(forward, learner, parts, live, lambda loss: loss.backward(), lambda _: nullcontext())
        torch.nn.utils.clip_grad_norm_([p for p in learner.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        learner.after_step(notes, case.progress)
        optimizer.zero_grad(set_to_none=True)

    return step


def _status(name: str) -> float:
    """A size of this process in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))
