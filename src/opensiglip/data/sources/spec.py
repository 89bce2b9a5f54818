"""What a user writes after `--data`: `KIND:PATH?text=a,b&image=c:box_format=xywh=0.3`, all but the path optional."""

import re
from dataclasses import dataclass, field

from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.sources.url import check_no_credentials, is_remote
from opensiglip.errors import UserError

BOX_FORMAT = ":box_format="  # stands between a source and the layout of its boxes
OPTIONS = {  # after a question mark, joined by &; those that name several join them by commas
    "image": "the column or extension of the image",
    "text": "columns, members or JSON keys of texts, of one perhaps its share: a,b:0.3",
    "label": "the column of the class",
    "lang": "the column of the language",
    "root": "the folder that image paths are relative to",
    "classes": "a text file with the name of a class a line",
    "clean": "alt-text: take out of texts what is no description",
    "revision": "of a dataset on the hub",
    "config": "of a dataset on the hub",
    "by": "whose splits of RefCOCO: unc, umd or google",
    "pool": "RefCOCO's train: clean or full",
    "lanes": "shards read side by side",
}
CACHE_GB = 100.0
_OPTIONS = re.compile(r"\?(\w+=[^&?]*(?:&\w+=[^&?]*)*)$")
_SHARE = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_WEIGHT = re.compile(r"=(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)$")


@dataclass(frozen=True)
class Spec:
    """A source as the user wrote it, but for its weight (`name`), and what that says."""

    name: str
    kind: str  # "" where none is named
    path: str
    options: dict[str, str] = field(default_factory=dict)
    layout: BoxLayout | None = None
    cache_gb: float = CACHE_GB  # of this node's disk, for shards that lie elsewhere

    def several(self, option: str) -> tuple[str, ...]:
        """An option's names."""
        return tuple(name for name in self.options.get(option, "").split(",") if name)

    def texts(self) -> dict[str, float | None]:
        """The names of `?text=a,b:0.3`, and how often a visit draws a text of each; None where all are drawn alike.

        Names without a share have what is left, in equal parts. Raises UserError where nothing is.
        """
        given = {name: share for name, share in map(_share, self.several("text"))}
        known = [share for share in given.values() if share is not None]
        if not known:
            return given
        left, others = 1 - sum(known), len(given) - len(known)
        if (others and left <= 1e-9) or (not others and not sum(known)):
            raise UserError(f"--data {self.name}: the shares of ?text= leave nothing for a text without one.")
        return {name: left / others if share is None else share for name, share in given.items()}


def _share(text: str) -> tuple[str, float | None]:
    """`b:0.3` as ("b", 0.3)."""
    name, colon, number = text.rpartition(":")
    return (name, float(number)) if colon and _SHARE.fullmatch(number) else (text, None)


def split_weight(spec: str) -> tuple[str, float | None]:
    """`SPEC=0.3` as ("SPEC", 0.3). Raises UserError for a weight of 0.

    `scenes:drawings=24` and `t.csv?text=3` end in a value of their own: there a weight stands after a second "=".
    """
    found = _WEIGHT.search(spec)
    if found is None:
        return spec, None
    rest = spec[: found.start()]
    own = rest.startswith("scenes:") or _OPTIONS.search(spec) is not None
    if own and "=" not in re.split(r"[,&?]|^scenes:", rest)[-1]:
        return spec, None
    weight = float(found[1])
    if not 0 < weight < 1e9:
        raise UserError(f"--data {spec}: a weight is a number above 0; leave the source out instead.")
    return rest, weight


def with_clean(spec: str, clean: str | None) -> str:
    """The spec with its texts cleaned so; as it is for None."""
    if clean is None:
        return spec
    name, weight = split_weight(spec)
    rest, layout = name, ""
    if BOX_FORMAT in name:
        rest, _, text = name.rpartition(BOX_FORMAT)
        layout = f"{BOX_FORMAT}{text}"
    joint = "&" if _OPTIONS.search(rest) else "?"
    return f"{rest}{joint}clean={clean}{layout}" + ("" if weight is None else f"={weight!r}")


def parse_spec(spec: str, kinds: tuple[str, ...], cache_gb: float = CACHE_GB) -> Spec:
    """A source without its weight. Raises UserError for options and layouts that are not known, and for passwords."""
    check_no_credentials(spec, OPTIONS)
    rest, layout = spec, None
    if BOX_FORMAT in spec:
        rest, _, text = spec.rpartition(BOX_FORMAT)
        layout = BoxLayout.parse(text)
    options: dict[str, str] = {}
    if found := _OPTIONS.search(rest):
        rest = rest[: found.start()]
        options = dict(pair.split("=", 1) for pair in found[1].split("&"))
        if unknown := [name for name in options if name not in OPTIONS]:
            raise UserError(
                f"--data {spec}: {unknown[0]!r} is not an option of a source; there are {', '.join(OPTIONS)}."
            )
    kind, colon, path = rest.partition(":")
    if not colon or kind not in kinds or is_remote(rest):
        kind, path = "", rest
    return Spec(spec, kind, path, options, layout, cache_gb)
