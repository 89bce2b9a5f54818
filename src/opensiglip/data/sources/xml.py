"""XML of annotations: elements and their text. A document type, with which entities begin, is refused."""

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from opensiglip.data.example import BrokenExample

MAX_BYTES = 4_000_000
MAX_DEPTH = 16


@dataclass
class Element:
    """A tag, what is written in it, and the elements in it."""

    tag: str
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def all(self, tag: str) -> list["Element"]:
        """The children of a tag."""
        return [child for child in self.children if child.tag == tag]

    def find(self, *path: str) -> str | None:
        """The text at a path of tags, the first of each; None where there is none."""
        at = self
        for tag in path:
            found = at.all(tag)
            if not found:
                return None
            at = found[0]
        return at.text.strip()

    def numbers(self, *tags: str) -> list[float] | None:
        """The children of these tags as numbers; None where one is none. NaN is for who reads them to refuse."""
        try:
            return [float(self.find(tag) or "") for tag in tags]
        except ValueError:
            return None


def read_xml(path: Path) -> Element:
    """The outermost element of a file. Raises BrokenExample."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BrokenExample(f"xml over {MAX_BYTES // 1_000_000} MB")
        data = path.read_bytes()
    except OSError:
        raise BrokenExample("xml can't be read") from None
    return parse_xml(data)


def parse_xml(data: bytes) -> Element:
    """The outermost element. Raises BrokenExample."""
    above = [Element("")]

    def refuse(*_: object) -> None:
        raise BrokenExample("xml with a document type")

    def begin(tag: str, _: dict[str, str]) -> None:
        if len(above) > MAX_DEPTH:
            raise BrokenExample(f"xml nested over {MAX_DEPTH} deep")
        element = Element(tag)
        above[-1].children.append(element)
        above.append(element)

    def end(_: str) -> None:
        above.pop()

    def text(data: str) -> None:
        above[-1].text += data

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = begin, end, text
    parser.buffer_text = True
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError):  # damaged, or of an encoding that is none
        raise BrokenExample("xml can't be parsed") from None
    return above[0].children[0]
