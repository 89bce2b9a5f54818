"""`import opensiglip`: what it offers is the same whatever was imported before it, and light."""

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import opensiglip
from opensiglip import data, objectives

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


def test_the_public_names_are_these() -> None:
    assert set(opensiglip.__all__) == TODAY
    assert dir(opensiglip) == sorted(TODAY)
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        opensiglip.tarin  # noqa: B018


def test_import_reads_no_torch() -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    script = "import sys, opensiglip; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_star_import_gives_every_name() -> None:
    names: dict[str, object] = {}
    exec("from opensiglip import *", names)
    assert names.keys() - {"__builtins__"} == TODAY
    assert names["train"] is opensiglip.train and names["Sigmoid"] is opensiglip.Sigmoid


@pytest.mark.parametrize("package", [opensiglip, data, objectives])
def test_no_lazy_name_is_that_of_a_module(package: ModuleType) -> None:
    """Whoever imports a module sets it as an attribute of its package, before which a lazy name is not looked up.

    So a name is hidden by some order of imports exactly if a module of that name exists.
    """
    for name in package.HOMES:
        assert find_spec(f"{package.__name__}.{name}") is None, f"{name} is hidden once that module is imported"


def test_no_public_name_is_hidden_once_every_module_is_imported() -> None:
    before = {name: getattr(opensiglip, name) for name in TODAY}
    modules = {".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in SOURCE.glob("opensiglip/**/*.py")}
    for module in sorted(modules - {"opensiglip.__main__"}):
        import_module(module.removesuffix(".__init__"))
    assert all(getattr(opensiglip, name) is value for name, value in before.items())


def test_names_do_not_depend_on_what_was_used_before() -> None:
    for name in TODAY - {"__version__"}:
        assert not isinstance(getattr(opensiglip, name), ModuleType)
        assert getattr(opensiglip, name) is getattr(opensiglip, name)
