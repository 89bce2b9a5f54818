"""A function's signature and docstring, read from its file's syntax tree: flags are known before torch is imported."""

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

SOURCE = Path(__file__).parents[2]  # holds the package; benchmarks/ and studies/ lie beside it in a clone
ROOTS = (SOURCE, SOURCE.parent)
LIGHT = sys.stdlib_module_names | {"tyro"}  # imported in milliseconds
KINDS = inspect.Parameter
JSON: dict[Any, Any] = {bool: bool, int: int, float: (int, float), str: str, Path: str, NoneType: NoneType}


class NotPlainError(Exception):
    """The syntax tree alone does not say; the module must be imported."""


def read(module: str, name: str) -> tuple[inspect.Signature, str]:
    """Signature and docstring of `module`'s function; the module itself is imported only where it is not plain."""
    try:
        return read_plain(file_of(module), name)
    except NotPlainError:
        function = getattr(import_module(module), name)
        return inspect.signature(function), inspect.getdoc(function) or ""


def read_plain(file: Path, name: str) -> tuple[inspect.Signature, str]:
    """The same of a file that need not be a module. Raises NotPlainError, SyntaxError."""
    names = Names(file)
    node = names.statements.get(name)
    if isinstance(node, ast.ImportFrom) and node.module:
        return read_plain(file_of(node.module), _original(node, name))
    if not isinstance(node, ast.FunctionDef) or node.decorator_list:
        raise NotPlainError(f"{name} in {file}")
    return inspect.Signature(list(_parameters(node, names))), ast.get_docstring(node) or ""


def summary(module: str, name: str) -> str:
    """The first line of a function's docstring."""
    return read(module, name)[1].partition("\n")[0]


def like(signature: inspect.Signature, doc: str = "") -> Callable[..., dict[str, Any]]:
    """A function of that signature which returns its arguments."""

    def take(**arguments: Any) -> dict[str, Any]:
        return arguments

    take.__signature__ = signature  # type: ignore[attr-defined]
    take.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    take.__doc__ = doc
    return take


def of_fields(config: type, **types: Any) -> list[inspect.Parameter]:
    """A dataclass's fields as keywords; `types` take the place of their own."""
    hints = get_type_hints(config, include_extras=True) | types
    return [
        KINDS(
            one.name,
            KINDS.KEYWORD_ONLY,
            annotation=hints[one.name],
            default=KINDS.empty if one.default is MISSING else one.default,
        )
        for one in fields(config)
    ]


def takes(annotation: Any, value: Any) -> bool:
    """Whether a value of JSON, its lists as tuples, is of the kind that an annotation names; unknown kinds take all."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return takes(parts[0], value)
    if kind in (Union, UnionType):
        return any(takes(part, value) for part in parts)
    if kind is Literal:
        return value in parts
    if kind is tuple:
        wanted = parts[:1] * len(value) if isinstance(value, tuple) and Ellipsis in parts else parts
        return isinstance(value, tuple) and len(value) == len(wanted) and all(map(takes, wanted, value))
    if annotation not in JSON:
        return True
    return isinstance(value, JSON[annotation]) and isinstance(value, bool) == (annotation is bool)


def file_of(module: str) -> Path:
    """The file of one of our modules, found without importing its packages. Raises NotPlainError."""
    for root in ROOTS:
        path = root.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    raise NotPlainError(module)


class Names(dict[str, Any]):
    """What a file's top-level names mean, for annotations and defaults; each is evaluated when first asked for."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.statements: dict[str, ast.stmt] = {}
        for node in _top_level(ast.parse(file.read_text(encoding="utf-8"), str(file))):
            match node:
                case ast.Import(names=imported) | ast.ImportFrom(names=imported):
                    self.statements |= {alias.asname or alias.name: node for alias in imported}
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    self.statements[name] = node
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    self.statements[name] = node

    def __missing__(self, name: str) -> Any:
        match self.statements.get(name):
            case None:
                raise KeyError(name)  # then it is a builtin
            case ast.Import(names=imported):
                alias = next(alias for alias in imported if (alias.asname or alias.name) == name)
                value = _imported(alias.name)
            case ast.ImportFrom(module=str(module), level=0) as node:
                value = _member(module, _original(node, name))
            case ast.Assign(value=expression) | ast.AnnAssign(value=ast.expr() as expression):
                value = self.evaluate(expression)
            case _:
                raise NotPlainError(f"{name} in {self.file}")
        self[name] = value
        return value

    def evaluate(self, node: ast.expr) -> Any:
        """The value of an annotation or a default. Raises NotPlainError."""
        if any(isinstance(part, ast.Lambda | ast.NamedExpr | ast.comprehension) for part in ast.walk(node)):
            raise NotPlainError(f"line {node.lineno} of {self.file}")
        try:
            return eval(compile(ast.Expression(node), str(self.file), "eval"), {}, self)
        except (NameError, AttributeError, TypeError) as error:
            raise NotPlainError(f"line {node.lineno} of {self.file}: {error}") from error


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        if isinstance(node, ast.If):  # TYPE_CHECKING
            yield from node.body
        yield node


def _original(node: ast.ImportFrom, name: str) -> str:
    return next(alias.name for alias in node.names if (alias.asname or alias.name) == name)


def _parameters(node: ast.FunctionDef, names: Names) -> Iterator[inspect.Parameter]:
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    rows: list[tuple[ast.arg | None, Any, ast.expr | None]] = [
        *((one, KINDS.POSITIONAL_OR_KEYWORD, default) for one, default in zip(positional, defaults, strict=True)),
        (given.vararg, KINDS.VAR_POSITIONAL, None),
        *((one, KINDS.KEYWORD_ONLY, d) for one, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)),
        (given.kwarg, KINDS.VAR_KEYWORD, None),
    ]
    for one, kind, default in rows:
        if one is not None:
            yield KINDS(
                one.arg,
                kind,
                default=KINDS.empty if default is None else names.evaluate(default),
                annotation=KINDS.empty if one.annotation is None else names.evaluate(one.annotation),
            )


def _imported(module: str) -> Any:
    if not _light(module):
        raise NotPlainError(module)
    import_module(module)
    return sys.modules[module.partition(".")[0]]


def _member(module: str, name: str) -> Any:
    """What `from module import name` gives: of a light module by import, of another of ours if it is a constant."""
    if _light(module):
        return getattr(import_module(module), name)
    names = Names(file_of(module))
    if not isinstance(names.statements.get(name), ast.Assign | ast.AnnAssign | ast.ImportFrom):
        raise NotPlainError(f"{name} in {module}")
    return names[name]


@cache
def _light(module: str) -> bool:
    """Whether it imports, with all its packages, nothing but the standard library, tyro and light modules of ours."""
    if module.partition(".")[0] in LIGHT:
        return True
    parts = module.split(".")
    try:
        files = [file_of(".".join(parts[: place + 1])) for place in range(len(parts))]
    except NotPlainError:
        return False
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            wanted = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wanted += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if not all(_light(one) for one in wanted):
                return False
    return True
