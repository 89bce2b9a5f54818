"""The map of the house, held at the level of files: imports point one way, and some things stand in one file only."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import opensiglip

ROOT = Path(opensiglip.__file__).parent

# A room imports from itself and from the rooms above it. A room is a file or folder below src/opensiglip; of a path
# that several names fit, the longest counts.
ROOMS = [
    "errors",
    "types",
    "bounds",
    "disk",
    "json_file",
    "lazy",
    "user_file",
    "distributed",
    "float64",
    "progress",
    "losses",
    "data",
    "models",
    "optim",
    "checkpoints",
    "inference",
    "reports.drawing",  # the plots that pages and studies share
    "evaluation",
    "reports",
    "objectives",
    "recipes",
    "training",
    "bridge",
    "apps",
    "__init__",  # the public names
    "__main__",
]

# Imports inside functions, each with its reason.
LATE_LIBRARIES = {
    "gradio": "of the extra `demo`",
    "starlette": "gradio's server",
    "faiss": "of the extra `search`",
    "uvicorn": "of the extra `serve`",
    "onnxruntime": "of the extra `onnx`",
    "onnxscript": "of the extra `onnx`",
    "peft": "of the extra `lora`",
    "pycocotools": "of the extra `eval`",
    "scipy": "of the extra `eval`",
    "sklearn": "of the extra `eval`",
    "pillow_heif": "of no extra: only where a HEIC image is read",
    "timm": "of the extra `timm`",
    "open_clip": "of no extra: only where its weights are read",
    "py3langid": "of the extra `languages`",
    "huggingface_hub": "only where the hub is reached",
    "matplotlib": "only where a plot is drawn, and slow",
    "tqdm": "its bar for notebooks warns where ipywidgets is missing",
    "torchvision": "the detector's list of classes, slow",
    "transformers": "a processor, slow",
    "mteb": "of no extra: only where its tasks are run",
    "clip_benchmark": "the same",
    "resource": "not on Windows",
}
LATE_ROOMS = {
    "apps.plan": "flags are parsed before torch is imported",
    "apps.train": "the same",
    "apps.serve.serve": "its files import the extra `serve`, which may not be installed",
    "data.sources.registry": "scenes read the drawings' package, which a folder does not need",
    "evaluation.labels": "the same",
}


@dataclass(frozen=True)
class Import:
    """One imported name: the module it is asked of, and whether the statement stands inside a function."""

    module: str
    name: str | None
    late: bool
    line: int


FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports(tree: ast.AST, late: bool = False) -> Iterator[Import]:
    """Every import of a file, also inside functions and for type checkers, and a package's table of lazy names."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import():
                yield from (Import(alias.name, None, late, node.lineno) for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield from (Import(module, alias.name, late, node.lineno) for alias in node.names)
            case ast.ImportFrom():
                raise AssertionError(f"line {node.lineno} imports relatively")
        yield from imports(node, late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def lazy_names(name: str) -> list[str]:
    """The modules in a package's table HOMES, whose names it imports when first used."""
    package = name.removesuffix(".__init__")
    for node in TREES[name].body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "HOMES" and name != "__init__":
            return [f"opensiglip.{package}.{module}" for module in sorted(set(ast.literal_eval(node.value).values()))]
    return []


def file_of(module: str, name: str | None = None) -> str | None:
    """The file that `from module import name` reads, by its name in FILES; None if it is not ours."""
    if module != "opensiglip" and not module.startswith("opensiglip."):
        return None
    parts = module.split(".")[1:]
    for tried in ([*parts, name], [*parts, name, "__init__"], parts, [*parts, "__init__"]):
        found = ".".join(part for part in tried if part)
        if found in FILES:
            return found
    raise AssertionError(f"{module} imports no file of ours")


def edges(name: str) -> dict[str, list[int]]:
    """The files of ours that a file imports, with the lines."""
    found: dict[str, list[int]] = {}
    for one in imports(TREES[name]):
        target = file_of(one.module, one.name)
        if target is not None and target != name:
            found.setdefault(target, []).append(one.line)
    for module in lazy_names(name):
        found.setdefault(file_of(module) or "", []).append(0)
    return found


GRAPH = {name: edges(name) for name in FILES}


def room_of(name: str) -> str:
    found = [room for room in ROOMS if name == room or name.startswith(room + ".")]
    assert found, f"{name} stands in no room"
    return max(found, key=len)


def test_every_file_stands_in_a_room_and_every_room_has_one() -> None:
    assert {room_of(name) for name in FILES} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_above_it(room: str) -> None:
    above = set(ROOMS[: ROOMS.index(room) + 1])
    wrong = [
        f"{name}, line {lines[0]}: {target}"
        for name in FILES
        if room_of(name) == room
        for target, lines in GRAPH[name].items()
        if room_of(target) not in above and target != "__init__"  # the version
    ]
    assert wrong == []


def test_the_imports_of_files_have_no_circle() -> None:
    graph = {name: set(targets) - {"__init__"} for name, targets in GRAPH.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"a circle: {' <- '.join(error.args[1])}") from None


def test_imports_inside_functions_are_listed_with_their_reason() -> None:
    found = {
        f"{name}: {top}"
        for name, tree in TREES.items()
        for one in imports(tree)
        if one.late and (top := one.module.partition(".")[0]) not in LATE_LIBRARIES
        if not (top == "opensiglip" and name in LATE_ROOMS)
    }
    assert sorted(found) == []


def calls(name: str) -> set[str]:
    """What a file calls or names: `f`, and `.method` of anything."""
    nodes = list(ast.walk(TREES[name]))
    plain = {node.id for node in nodes if isinstance(node, ast.Name)}
    return plain | {f".{node.attr}" for node in nodes if isinstance(node, ast.Attribute)}


TOKENIZERS = {"AutoTokenizer", "Tokenizer", ".apply_chat_template", ".batch_encode_plus", ".batch_decode"}
TOKENIZERS |= {".encode_batch", ".convert_tokens_to_ids", ".convert_ids_to_tokens", ".from_pretrained_tokenizer"}
# What is no model's text pipeline: another detector's own processor.
OTHER_TOKENIZERS = {"apps.annotate.detector"}


def asks_a_tokenizer(name: str) -> bool:
    """Does a file call what is named a tokenizer, or a method of it?"""
    called = [ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    return any(re.search(r"\btokenizer(\.\w+)?$", function) for function in called)


def test_texts_become_ids_in_one_file() -> None:
    assert {name for name in FILES if calls(name) & TOKENIZERS} - OTHER_TOKENIZERS == {"data.tokenizers"}
    # The pipeline itself looks at what it is made from.
    assert {name for name in FILES if asks_a_tokenizer(name)} - OTHER_TOKENIZERS == {"data.tokenizers", "data.text"}


RUN_FOLDER = {"checkpoints", "stages", "metrics.jsonl", "summary.json", "report.html"}
RUN_FOLDER |= {"learner.safetensors", "optimizer.safetensors"}  # state.json is also a name of `datasets`


def strings(name: str) -> set[str]:
    """The strings of a file, parts of f-strings too, less its docstrings."""
    docs = {id(node.value) for node in ast.walk(TREES[name]) if isinstance(node, ast.Expr)}
    nodes = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Constant) and id(node) not in docs]
    return {node.value for node in nodes if isinstance(node.value, str)}


def test_the_names_in_a_runs_folder_stand_in_one_file() -> None:
    assert {name for name in FILES if strings(name) & RUN_FOLDER} == {"checkpoints.run_folder"}


def test_one_file_knows_the_name_of_a_models_sidecar() -> None:
    assert len({name for name in FILES if "opensiglip.json" in strings(name)}) == 1


# Who may know of ranks: what they say to one another, how weights are cut among them, how they are started.
RANKS = {"distributed", "training.sharding", "apps.ranks"}


def test_few_files_know_of_ranks() -> None:
    knowing = {
        name
        for name, tree in TREES.items()
        for one in imports(tree)
        if f"{one.module}.{one.name}".startswith("torch.distributed")
    }
    assert knowing == RANKS
    assert {name for name in FILES if "torch.distributed" in FILES[name].read_text(encoding="utf-8")} == RANKS


def test_nothing_unpickles() -> None:
    for name, tree in TREES.items():
        used = {one.module.partition(".")[0] for one in imports(tree)}
        assert not used & {"pickle", "shelve", "marshal", "dill", "joblib", "cloudpickle"}, name
        loads = [
            node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load"
        ]
        assert loads == [], name
        numpy = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "allow_pickle"]
        assert all(isinstance(node.value, ast.Constant) and node.value.value is False for node in numpy), name


def test_transformers_runs_no_code_of_a_model_and_unpickles_nothing() -> None:
    """Every Auto class is told not to (by default it asks "[y/N]"), and every model that weights are safetensors."""
    kinds = set()
    for file in ROOT.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match call:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="from_pretrained")):
                    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                case _:
                    continue
            where = f"{file.relative_to(ROOT)}:{call.lineno} {name}"
            if name.startswith("Auto"):
                assert given.get("trust_remote_code") == "False", where
            if name.startswith(("AutoModel", "TimmWrapperModel")):
                assert given.get("use_safetensors") == "True", where
            kinds.add(name)
    assert {"AutoConfig", "AutoTokenizer", "TimmWrapperModel"} <= kinds
