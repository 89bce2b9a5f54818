"""The pages of this folder and of studies/: `page.html` frames each, with one style sheet and one content policy."""

from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined


@cache
def pages() -> Environment:
    """The templates by name, each compiled once in a process. All that they are given is escaped."""
    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["style"] = read("style.css")
    return environment


def read(name: str) -> str:
    """The text of a file of this folder."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
