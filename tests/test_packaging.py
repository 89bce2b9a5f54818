"""The pins, the Makefile and the package that is built: what a fresh machine meets first."""

import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import hatchling.build
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import opensiglip

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = (ROOT / "requirements.txt").read_text()
DOCS = (ROOT / "requirements-docs.txt").read_text()
PIN = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[0-9][0-9a-z.+]*)( ; [^#]+?)?( --hash=sha256:[0-9a-f]{64})+"
)


def pins(text: str = PINS) -> list[str]:
    """requirements.txt, one requirement a string, without comments."""
    joined = re.sub(r" \\\n +", " ", text)
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def pinned_versions(name: str) -> list[Version]:
    matches = [match for match in map(PIN.fullmatch, pins()) if match]
    return [Version(m["version"]) for m in matches if canonicalize_name(m["name"]) == canonicalize_name(name)]


def declared() -> list[str]:
    """What `make setup` must find among the pins: core, optional, development and build requirements."""
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    others = [line for line in extras if not line.startswith("opensiglip[")]
    return [*project["dependencies"], *others, *PYPROJECT["build-system"]["requires"]]


def test_every_pin_is_one_version_with_sha256_hashes() -> None:
    assert pins()
    assert [line[:80] for line in pins() if not PIN.fullmatch(line)] == []


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-docs.txt"])
def test_the_pins_name_no_host_no_url_and_no_path(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    found = [line for line in lines if re.search(r"/|@|\.(com|dev|io|net|org)\b|index-url|find-links", line)]
    assert found == []


@pytest.mark.parametrize("line", declared())
def test_every_declared_dependency_is_pinned_within_its_bounds(line: str) -> None:
    requirement = Requirement(line)
    versions = pinned_versions(requirement.name)
    assert versions, f"{requirement.name} is missing in requirements.txt; see docs/how-to/pins.md"
    assert all(requirement.specifier.contains(version) for version in versions)


def test_the_documentations_tools_have_pins_with_hashes() -> None:
    matches = list(map(PIN.fullmatch, pins(DOCS)))
    assert None not in matches
    found = {m["name"]: Version(m["version"]) for m in matches if m}
    assert "torch" not in found
    for line in PYPROJECT["dependency-groups"]["docs"]:
        assert Requirement(line).specifier.contains(found[Requirement(line).name])


def test_the_pins_page_gives_the_constraints_that_the_pins_obey() -> None:
    constraints = re.findall(r"^(\w+)==(\S+)$", (ROOT / "docs/how-to/pins.md").read_text(), flags=re.MULTILINE)
    assert [name for name, _ in constraints] == ["torch", "torchvision", "transformers"]
    assert all(pinned_versions(name) == [Version(version)] for name, version in constraints)


def test_the_citation_has_the_version_of_the_package() -> None:
    assert f"\nversion: {opensiglip.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_wheel_holds_the_package_its_types_its_licences_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    wheel = zipfile.ZipFile(tmp_path / hatchling.build.build_wheel(str(tmp_path)))
    names = set(wheel.namelist())
    information = f"opensiglip-{opensiglip.__version__}.dist-info"
    assert {f"{information}/licenses/LICENSE", f"{information}/licenses/NOTICE", "opensiglip/py.typed"} <= names
    assert {name.split("/")[0] for name in names} == {"opensiglip", information}  # no benchmarks/, no studies/
    source = {path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {str(path.relative_to(ROOT / "src")) for path in source} <= names
    assert b"opensiglip = opensiglip.apps.cli:main" in wheel.read(f"{information}/entry_points.txt")


def test_the_container_is_built_from_files_that_are_there_and_runs_without_rights() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name.removeprefix("./") for line in lines if line.startswith("COPY") for name in line.split()[1:-1]}
    assert copied == kept and all((ROOT / name).exists() for name in copied)
    assert lines.index("USER opensiglip") < lines.index('ENTRYPOINT ["opensiglip"]')
    assert not [
        line for line in lines[lines.index("USER opensiglip") :] if line.startswith(("RUN", "COPY", "USER root"))
    ]


def test_the_wheel_is_installed_and_runs_without_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dependencies are those of this environment; nothing is fetched."""
    monkeypatch.chdir(ROOT)
    wheel = tmp_path / hatchling.build.build_wheel(str(tmp_path))
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-index", "--no-deps", "--no-compile", "--target", place]
    subprocess.run([*pip, wheel], check=True, timeout=120, capture_output=True)
    script = "import sys, opensiglip; from opensiglip.apps.cli import main; print(opensiglip.__file__); "
    script += "main(['train', 'siglip2', '--help']); sys.exit(main(['bench', 'sigmoid']))"
    environment = {**os.environ, "PYTHONPATH": str(place)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    file, *said = done.stdout.splitlines()
    assert Path(file).is_relative_to(place) and "most used:" in said
    assert done.returncode == 2 and "benchmarks are not part of the installed package" in done.stderr
    page = (ROOT / "docs/how-to/install.md").read_text()
    assert wheel.name in page and all(
        f"| `{extra}` |" in page for extra in PYPROJECT["project"]["optional-dependencies"]
    )


def test_the_pinned_packages_suffice_for_the_editable_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wheel = zipfile.ZipFile(tmp_path / hatchling.build.build_editable(str(tmp_path)))
    paths = [wheel.read(name).decode().strip() for name in wheel.namelist() if name.endswith(".pth")]
    assert paths == [str(ROOT / "src")]


MAKE = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON"}  # what `make test` hands down to a make under test


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in MAKE}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=30)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the real Makefile and a stand-in `python`.

    Its venvs hold itself as their python, ruff and mypy, and `log` holds what was asked of it. While a file `broken`
    exists, installing fails; while `interrupted` does, it is interrupted.
    """
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "requirements.txt").touch()
    (tmp_path / "pyproject.toml").touch()
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "-c*|*--version) ;;\n"
        '"-m venv --clear .venv") echo venv >> log; rm -rf .venv; mkdir -p .venv/bin\n'
        '  for tool in python ruff mypy; do cp "$0" .venv/bin/$tool; done;;\n'
        '*) [ "${0##*/}" = python ] || set -- "${0##*/}" "$@"\n'
        '  echo "$*" >> log; [ ! -e interrupted ] || kill -TERM $PPID; [ ! -e broken ];;\n'
        "esac\n"
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return tmp_path


INSTALLS = [
    "-m pip install -qq --require-hashes -r requirements.txt",
    "-m pip install -qq --no-deps --no-build-isolation -e .",
]


def asked(checkout: Path) -> list[str]:
    lines = (checkout / "log").read_text().splitlines()
    (checkout / "log").unlink()
    return lines


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("setup", ""),
        ("test", ".venv/bin/python -m pytest"),
        ("lint", ".venv/bin/ruff format --check\n.venv/bin/ruff check\n.venv/bin/mypy"),
        ("format", ".venv/bin/ruff check --fix\n.venv/bin/ruff format"),
        ("train", ".venv/bin/opensiglip train siglip2 --size tiny"),
    ],
)
def test_every_target_sets_up_and_runs_its_commands(target: str, command: str, checkout: Path) -> None:
    planned = make(checkout, "--dry-run", target).stdout
    assert "pip install" in planned
    assert command in planned.rpartition("touch .venv/.installed\n")[2]


def test_clean_removes_the_environment_and_keeps_the_runs(checkout: Path) -> None:
    for folder in (".venv", "runs", "src/__pycache__", "tests"):
        (checkout / folder).mkdir(parents=True)
    assert make(checkout, "clean").returncode == 0
    assert sorted(path.name for path in checkout.iterdir() if path.is_dir()) == ["runs", "src", "tests"]
    assert list((checkout / "src").iterdir()) == []


def test_make_alone_lists_every_target() -> None:
    listed = {line.split()[1] for line in make(ROOT).stdout.splitlines()}
    assert listed == {
        "help",
        "setup",
        "test",
        "test-browser",
        "lint",
        "format",
        "train",
        "photos",
        "clean",
        "audit",
        "torture",
        "docs",
        "matrix",
    }


CHECKS = ["ruff format --check", "ruff check", "mypy"]


@pytest.mark.parametrize("browser", [True, False])
def test_continuous_integration_checks_tests_and_clicks_or_says_that_it_cannot(checkout: Path, browser: bool) -> None:
    script = checkout / ".ci" / "run"
    script.parent.mkdir()
    script.write_text((ROOT / ".ci/run").read_text())
    assert (ROOT / ".ci/run").stat().st_mode & stat.S_IXUSR
    tools = checkout / "tools"
    tools.mkdir()
    for name in ("bash", "sh", "env", "make", "dirname", "cp", "rm", "mkdir", "chmod", "touch", "cat", "echo", "kill"):
        (tools / name).symlink_to(shutil.which(name) or "/bin/false")
    for name in ("chromium", "chromedriver") if browser else ():
        (tools / name).symlink_to("/bin/true")
    environment = {"PATH": str(tools), "PYTHON": str(checkout / "python")}
    done = subprocess.run(
        [tools / "bash", script], cwd="/", env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    tests = ["-m pytest -n auto --dist loadfile", *(["-m pytest tests/browser"] if browser else [])]
    assert asked(checkout) == ["venv", *INSTALLS, *CHECKS, *tests]
    assert ("was not clicked through" in done.stdout) is not browser


def test_the_matrix_takes_the_oldest_from_the_lower_bounds(tmp_path: Path) -> None:
    matrix: dict[str, Any] = runpy.run_path(str(ROOT / ".ci/matrix.py"))
    bounds = dict(line.split(">=") for line in PYPROJECT["project"]["dependencies"] if ">=" in line)
    oldest, newest = matrix["requirements"]("oldest"), matrix["requirements"]("newest")
    assert oldest[0] == f"torch=={bounds['torch']}.*" and newest == ["torch", "torchvision", "transformers"]
    for line in oldest:
        assert Requirement(line).specifier.contains(f"{bounds[Requirement(line).name]}.0")
    assert any(version == f"{sys.version_info.major}.{sys.version_info.minor}" for version, _ in matrix["found"]())


def test_the_public_workflow_runs_what_ci_runs_and_every_python_that_is_declared() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert "bash .ci/run" in [step.get("run") for step in jobs["pinned"]["steps"]]
    pythons = jobs["versions"]["strategy"]["matrix"]["python"]
    assert tuple(pythons) == runpy.run_path(str(ROOT / ".ci/matrix.py"))["PYTHONS"]
    assert PYPROJECT["project"]["requires-python"] == f">={pythons[0]}"
    for version in pythons:
        assert f"Programming Language :: Python :: {version}" in PYPROJECT["project"]["classifiers"]


def test_hypothesis_repeats_itself_in_continuous_integration() -> None:
    """And nowhere else: in a fork each of a process that has imported the packages that take seconds."""
    assert "export CI=true" in (ROOT / ".ci/run").read_text()
    script = """
import os, sys
import opensiglip.training.run
assert "hypothesis" not in sys.modules
for variable in ("CI", "ELSEWHERE"):
    if not (fork := os.fork()):
        os.environ[variable] = "true"
        import conftest
        from hypothesis import settings
        print(settings().derandomize, flush=True)
        os._exit(0)
    os.waitpid(fork, 0)
"""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    paths = f"{ROOT / 'tests'}{os.pathsep}{ROOT / 'src'}"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "True\nFalse\n", done.stderr


def test_what_runs_before_a_commit_is_what_make_lint_runs() -> None:
    hooks = [
        hook
        for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repo["hooks"]
    ]
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert [hook["entry"] for hook in hooks] == [line.strip() for line in lint.splitlines()[1:]]


def test_setup_installs_hashed_pins_then_the_package_and_only_once(checkout: Path) -> None:
    assert make(checkout, "setup", "PYTHON=./python").returncode == 0
    assert asked(checkout) == ["venv", *INSTALLS]
    again = make(checkout, "setup", "PYTHON=./python")
    assert (again.returncode, again.stdout, (checkout / "log").exists()) == (0, "", False)


def test_changed_pins_are_installed_into_the_same_environment(checkout: Path) -> None:
    make(checkout, "setup", "PYTHON=./python")
    asked(checkout)
    os.utime(checkout / ".venv/.installed", (0, 0))  # as if requirements.txt had changed since
    assert make(checkout, "setup", "PYTHON=./python").returncode == 0
    assert asked(checkout) == INSTALLS


def test_a_failed_install_fails_and_is_tried_again(checkout: Path) -> None:
    (checkout / "broken").touch()
    assert make(checkout, "setup", "PYTHON=./python").returncode != 0
    assert asked(checkout) == ["venv", INSTALLS[0]]
    (checkout / "broken").unlink()
    assert make(checkout, "setup", "PYTHON=./python").returncode == 0
    assert asked(checkout) == INSTALLS


@pytest.mark.parametrize("shell", ["sh", "bash"])  # they treat a signal during a command differently
def test_an_interrupted_install_starts_again_from_an_empty_environment(checkout: Path, shell: str) -> None:
    (checkout / "interrupted").touch()
    assert make(checkout, "setup", "PYTHON=./python", f"SHELL={shell}").returncode != 0
    assert asked(checkout) == ["venv", INSTALLS[0]]
    (checkout / "interrupted").unlink()
    assert make(checkout, "setup", "PYTHON=./python").returncode == 0
    assert asked(checkout) == ["venv", *INSTALLS]
    assert not (checkout / ".venv/.installing").exists()


@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_an_old_or_missing_python_is_refused_in_one_sentence(checkout: Path, python: str) -> None:
    done = make(checkout, "setup", f"PYTHON={python}")
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode != 0
    assert said == [
        f'OpenSigLIP needs Python 3.11 or newer, which "{python}" is not: name one, as in make setup PYTHON=python3.12'
    ]
    assert not (checkout / ".venv").exists()


def test_every_module_can_be_imported_where_only_unix_has_what_others_lack() -> None:
    """As on Windows: no fcntl, resource, fork, pread or SIGKILL. Libraries are imported before, for they know."""
    code = """
import os, pkgutil, signal, sys
import accelerate, datasets, fastapi, filelock, gradio, matplotlib, sklearn, tokenizers, torchvision, transformers
import torch.distributed.run, torch.utils.data, transformers.integrations, uvicorn
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("fork", "register_at_fork", "sched_getaffinity", "sysconf", "getuid"):
    delattr(os, name)
for name in ("SIGKILL", "SIGUSR1", "SIGUSR2", "SIGHUP"):
    delattr(signal, name)
import opensiglip
names = [found.name for found in pkgutil.walk_packages(opensiglip.__path__, "opensiglip.")]
for name in names:
    if not name.endswith("__main__"):
        __import__(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150
