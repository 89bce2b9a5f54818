"""YOLO's folders: `data.yaml` with names and splits, and a text file of boxes for each image."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.sources.columns import Columns
from opensiglip.data.sources.files import below, parse_file_name
from opensiglip.data.sources.flickr30k import lines_of, read_sentences
from opensiglip.data.sources.image_folder import image_names
from opensiglip.data.sources.records import counted
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.table import Listed, need_rows, relative
from opensiglip.errors import UserError

MAX_YAML = 1 << 20  # bytes
KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class Yolo(Listed):
    """Images with a region for each line of their label file: class and box, or class and outline.

    An image without a label file, or with an empty one, has nothing to learn from: it is left out when it is read.
    """

    kind = "yolo"
    fixed_layout = BoxLayout("xyxy", relative=True)

    def __init__(self, spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Raises UserError where data.yaml can't be read or its folders have no image."""
        file = find_yaml(Path(spec.path).expanduser())
        told = read_yaml(file)
        self.names, self.pose = class_names(told, file), "kpt_shape" in told
        root = base(told, file).resolve()
        records, splits = [], list[str | None]()
        for name, keys in KEYS.items():
            for place in next((several(told[key]) for key in keys if told.get(key)), ()):
                found = list(images_in(root, place, file))
                records += [{"file_name": one} for one in found]
                splits += [name] * len(found)
        need_rows(spec, records, f"image in the folders of {file}")
        if set(splits) == {"train"}:
            splits = [None] * len(splits)  # one image in fifty is val
        columns = Columns("file_name", ("captions",), None, None, ("regions",))
        super().__init__(spec, split, languages, records, columns, root, splits)

    def values(self, row: int) -> dict[str, Any]:
        name = relative(label_file(str(self.cell(row))), self.root)
        lines = read_sentences(Path(below(self.root, name))) if (self.root / name).is_file() else []
        return {"regions": counted([self._region(line.split()) for line in lines])}

    def _region(self, words: list[str]) -> dict[str, Any]:
        """A line as a region; what is malformed is for the row checker to leave out."""
        try:
            number, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            return {}
        phrase = self.names.get(number)
        if len(values) in (4, 5) or self.pose:  # 5: a detector's score
            x, y, width, height = (values + [0.0] * 4)[:4]
            return {"phrase": phrase, "bbox": [x - width / 2, y - height / 2, x + width / 2, y + height / 2]}
        if len(values) < 6 or len(values) % 2:
            return {"phrase": phrase}
        across, down = values[::2], values[1::2]
        return {"phrase": phrase, "bbox": [min(across), min(down), max(across), max(down)]}


def find_yaml(path: Path) -> Path:
    """The file that describes a folder. Raises UserError."""
    if path.is_dir():
        found = [path / "data.yaml", *sorted(path.glob("*.yaml")), *sorted(path.glob("*.yml"))]
        path = next((file for file in found if file.is_file()), found[0])
    if not path.is_file():
        raise UserError(f"{path} is missing; give YOLO's data.yaml, with `names`, `train` and `val`.")
    return path


def read_yaml(file: Path) -> dict[str, Any]:
    """What a YAML file holds, plain values only. Raises UserError."""
    try:
        if file.stat().st_size > MAX_YAML:
            raise ValueError(f"it is over {MAX_YAML >> 20} MB")
        stored = yaml.safe_load(file.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} can't be read ({reason}); give YOLO's data.yaml.") from None
    if not isinstance(stored, dict):
        raise UserError(f"{file} holds no keys; give YOLO's data.yaml, with `names`, `train` and `val`.")
    return stored


def class_names(told: dict[Any, Any], file: Path) -> dict[int, str]:
    """The names of the classes by number. Raises UserError."""
    given = told.get("names")
    items = enumerate(given) if isinstance(given, list) else given.items() if isinstance(given, dict) else ()
    names = {number: str(name) for number, name in items if isinstance(number, int) and isinstance(name, str | int)}
    if not names:
        raise UserError(f"{file} has no `names` of classes; give YOLO's data.yaml.")
    return names


def base(told: dict[Any, Any], file: Path) -> Path:
    """The folder that images are relative to: `path`, where it is there, else the file's own."""
    given = told.get("path")
    path = file.parent / given if isinstance(given, str) else file.parent
    return path if path.is_dir() else file.parent


def several(value: Any) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def images_in(root: Path, place: str, file: Path) -> Iterator[str]:
    """The images of a folder or of a list of images, relative to the root. Raises UserError for one outside it.

    Roboflow writes `../train/images` for a folder beside the file.
    """
    for tried in (root / place, root / place.removeprefix("../")):
        path = tried.resolve()
        if not path.is_relative_to(root):
            continue
        if path.is_dir():
            prefix = PurePosixPath(path.relative_to(root).as_posix())
            yield from (str(prefix / name) for name in image_names(path))
            return
        if path.is_file():
            yield from (checked(line) for line in lines_of(path))
            return
    raise UserError(f"{file}: {place} is not a folder or list below {root}; fix the path.")


def checked(line: str) -> str:
    """A line of a list as a name below the root; one that leaves it stays as it is, to be refused when it is read."""
    try:
        return parse_file_name(line)
    except BrokenExample:
        return line


def label_file(name: str) -> str:
    """Where an image's boxes stand: the last folder `images` of its path is `labels` there."""
    before, found, after = f"/{name}".rpartition("/images/")
    path = f"{before}/labels/{after}" if found else f"/{name}"
    return f"{path.rpartition('.')[0]}.txt".lstrip("/")
