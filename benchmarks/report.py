"""What a measurement leaves: a table on the screen, and beside it JSON and a plot."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Row
from opensiglip.errors import UserError

PEERS = (
    "opensiglip",
    "torch",
    "triton",
    "transformers",
    "open-clip-torch",
    "liger-kernel",
    "cut-cross-entropy",
    "siglip-kernel",
)


def report(bench: str, rows: Sequence[Row], out: Path, device: torch.device) -> None:
    """Print the table; write `out`/<bench>.json and .png. Raises UserError if `out` can't be made."""
    print(table(rows))
    path = write(bench, rows, out, device)
    plot(rows, path.with_suffix(".png"))
    print(f"\nwritten: {path} and .png")


def write(bench: str, rows: Sequence[Row], out: Path, device: torch.device, **more: Any) -> Path:
    """Write `out`/<bench>.json, `more` after the rows; its path. Raises UserError if `out` can't be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} can't be made ({error.strerror}).") from error
    facts = {"bench": bench, "command": shlex.join(["opensiglip", *sys.argv[1:]]), "machine": machine(device)}
    path = out / f"{bench}.json"
    made = facts | {"rows": [asdict(row) for row in rows]} | more
    path.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return path


def table(rows: Sequence[Row]) -> str:
    """The rows as text; a column that no row has is left out."""
    columns: dict[str, list[str]] = {
        "case": [row.case for row in rows],
        "variant": [row.variant for row in rows],
        "ms": [f"{row.seconds * 1e3:.4g}" for row in rows],
        "from..to": [f"{row.low * 1e3:.4g}..{row.high * 1e3:.4g}" for row in rows],
        "peak MiB": ["" if row.peak_mib is None else f"{row.peak_mib:.0f}" for row in rows],
        "speed": [f"{row.speed:.2f}x" for row in rows],
        "over floor": ["" if row.over_floor is None else f"{row.over_floor:.2f}x" for row in rows],
        "items/s": ["" if row.per_second is None else f"{row.per_second:.4g}" for row in rows],
    }
    for name in dict.fromkeys(key for row in rows for key in row.facts):
        columns[name] = [_short(row.facts.get(name, "")) for row in rows]
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    widths = {name: max(len(name), *map(len, cells)) for name, cells in shown.items()}
    lines = []
    for line in ([*shown], *zip(*shown.values(), strict=True)):
        cells = zip(line, widths.values(), strict=True)
        lines.append("  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip())
    return "\n".join(lines)


def machine(device: torch.device) -> dict[str, Any]:
    """Device and versions."""
    versions = {}
    for package in PEERS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.backends.cpu.get_cpu_capability()}"
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions}


def plot(rows: Sequence[Row], path: Path) -> None:
    """A bar for each row: its time, and its peak memory where that is known."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 0.32 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [f"{row.case}  {row.variant}" for row in rows][::-1]
    ours = ["tab:blue" if "opensiglip" in row.variant else "silver" for row in rows][::-1]
    left.barh(names, [row.seconds for row in rows][::-1], color=ours)
    left.set_xlabel("seconds (median)")
    right.barh(names, [row.peak_mib or 0.0 for row in rows][::-1], color=ours)
    right.set_xlabel("peak MiB above the level before")
    figure.savefig(path, dpi=110)


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
