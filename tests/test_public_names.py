"""`import opensiglip`: what it offers is the same whatever was imported before it, and light."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import opensiglip

SOURCE = Path(opensiglip.__file__).parents[1]
TODAY = {
    *(
        "train",
        "evaluate",
        "load",
        "open_source",
        "list_recipes",
        "export",
        "Model",
        "Pretrained",
        "TextPipeline",
        "UserError",
    ),
    *("SigLIP2Loss", "SiglipForPreTraining", "PreTrainingCallback", "PreTrainingCollator"),
    *("Sigmoid", "Softmax", "Caption", "Continue", "Answer", "LocalToGlobal", "MaskedPatches", "__version__"),
}


def python(script: str, *flags: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *flags, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_these() -> None:
    assert set(opensiglip.__all__) == TODAY
    assert dir(opensiglip) == sorted(TODAY)
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        opensiglip.tarin  # noqa: B018


def test_import_reads_no_torch_and_star_import_gives_every_name() -> None:
    assert python("import sys, opensiglip; print('torch' in sys.modules)") == "False\n"
    assert python("from opensiglip import *; print(train.__name__, Sigmoid.__name__)") == "train Sigmoid\n"


def test_no_public_name_is_hidden_by_a_module_of_the_same_name() -> None:
    """In either order of imports, each in a fork of a process that has imported the packages that take seconds."""
    modules = sorted(
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for path in (SOURCE / "opensiglip").rglob("*.py")
        if path.stem != "__main__"
    )
    said = python(
        "import os, types, accelerate, datasets, transformers.modeling_utils, transformers.models.siglip, opensiglip\n"
        "from importlib import import_module\n"
        f"for order in ({modules}, {modules[::-1]}):\n"
        "    if not (fork := os.fork()):\n"
        "        for module in order: import_module(module)\n"
        "        print([n for n in opensiglip.__all__ if isinstance(getattr(opensiglip, n), types.ModuleType)])\n"
        "        print(callable(opensiglip.train), callable(opensiglip.train), flush=True)\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(fork, 0)[1] == 0"
    )
    assert said == "[]\nTrue True\n" * 2


def test_names_do_not_depend_on_what_was_used_before() -> None:
    for name in TODAY - {"__version__"}:
        assert not isinstance(getattr(opensiglip, name), ModuleType)
        assert getattr(opensiglip, name) is getattr(opensiglip, name)
