"""The suite on every Python that is here, with the oldest and the newest torch and transformers: `make matrix`.

The oldest are the lower bounds in pyproject.toml. Each pair gets an environment of some 7 GB in .venv/matrix, which is
removed once its tests have passed; one that failed stays.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
DECISIVE = ("torch", "torchvision", "transformers")  # whose versions are tried


def found() -> list[tuple[str, str]]:
    """Version and command of each Python that is here."""
    pythons = []
    for version in PYTHONS:
        command = sys.executable if sys.version.startswith(f"{version}.") else shutil.which(f"python{version}")
        if command and subprocess.run([command, "-c", "import venv"], capture_output=True).returncode == 0:
            pythons.append((version, command))
    return pythons


def requirements(which: str) -> list[str]:
    """What pip is asked for beside the package: the lower bounds themselves, or the newest that there are."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    bounds = dict(line.split(">=", 1) for line in lines if ">=" in line)
    return [f"{name}=={bounds[name].strip()}.*" if which == "oldest" else name for name in DECISIVE]


def run(python: str, folder: Path, which: str, tests: list[str]) -> tuple[bool, str]:
    """Make the environment, install, run the tests: whether all passed, and with which versions of DECISIVE."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    inside = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    strategy = ["--upgrade", "--upgrade-strategy", "eager"] if which == "newest" else []
    install = [inside, "-m", "pip", "install", "-qq", *strategy, "-e", f"{ROOT}[dev]", *requirements(which)]
    if subprocess.run(install, cwd=ROOT).returncode:
        return False, "not installed"
    freeze = [inside, "-m", "pip", "list", "--format=freeze"]
    lines = subprocess.run(freeze, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    versions = ", ".join(line.replace("==", " ") for line in lines if line.split("==")[0] in DECISIVE)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [inside, "-m", "pytest", "-n", "auto", "--dist", "loadfile", *tests]
    passed = subprocess.run(command, cwd=ROOT, env=environment).returncode == 0
    if passed:
        shutil.rmtree(folder)
    return passed, versions


def main() -> int:
    """1 where any pair failed, 2 where there is no Python."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("oldest", "newest"), help="of the two; both without it")
    parser.add_argument("--here", action="store_true", help="with this Python alone")
    parser.add_argument("tests", nargs="*", help="files; the whole suite without them")
    given = parser.parse_args()
    pythons = [one for one in found() if not given.here or sys.version.startswith(f"{one[0]}.")]
    if not pythons:
        print(f"none of Python {', '.join(PYTHONS)} is here.", file=sys.stderr)
        return 2
    outcome = {}
    for version, python in pythons:
        for which in (given.only,) if given.only else ("oldest", "newest"):
            name = f"{version}-{which}"
            outcome[name] = run(python, ROOT / ".venv/matrix" / name, which, given.tests)
    for name, (passed, versions) in outcome.items():
        print(f"{name:<16}{'passed' if passed else 'FAILED'}  {versions}")
    return 0 if all(passed for passed, _ in outcome.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
