"""`clean=alt-text`: what is no description taken out of texts from the web. Off by default; each rule is counted.

The rules, in their order; each names what it takes out, and the last two see what the others left:

    html       entities read (&amp; is &), tags and comments out
    markdown   ![a](url) and [a](url) are a; marks of emphasis, code, headings, quotes and lists out
    url        http(s):// and www. addresses, mail addresses
    file name  IMG_1234.jpg and the like, with an extension of images
    noise      "image may contain:", "alt text:", "click to enlarge", "stock photo", "royalty-free", sizes such as
               1200x800, and what follows a bar: names of stock agencies
    blanks     several blanks are one; dashes, bars and commas at the ends out
"""

import html
import re
from collections.abc import Callable

EXTENSION = r"(?:jpe?g|png|webp|gif|bmp|tiff?|heic|avif|svg)"
AGENCIES = "Shutterstock|Getty Images|iStock|Alamy|Adobe Stock|Dreamstime|Depositphotos|123RF|Freepik|Pinterest|Flickr"
TAG = re.compile(r"<!--.{0,2000}?-->|</?[A-Za-z][^<>]{0,500}>", re.DOTALL)
LINK = re.compile(r"!?\[([^\[\]]{0,500})\]\([^()\s]{0,2000}(?:\s+\"[^\"]{0,300}\")?\)")
EMPHASIS = re.compile(
    r"(\*\*|__|~~|`{1,3})(?=\S)(.{1,500}?)(?<=\S)\1|(?<!\w)([*_])(?=\S)([^*_]{1,500}?)(?<=\S)\3(?!\w)"
)
BLOCK = re.compile(r"(?m)^\s{0,3}(?:#{1,6}|>|[*+-])\s+")
ADDRESS = re.compile(r"(?:https?://|www\.)[^\s<>\"')\]]+|[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+", re.IGNORECASE)
FILE_NAME = re.compile(rf"[\w()%+~-]{{1,200}}\.{EXTENSION}\b", re.IGNORECASE)
NOISE = re.compile(
    r"^\s*(?:image may contain|may be an image of|alt(?:ernative)? text|image description)\s*:?"
    r"|\(?\bclick (?:here )?(?:to|for) (?:enlarge|zoom|view|a larger \w+)\b[^.()]{0,40}\)?"
    r"|\b(?:royalty[- ]free\b\s*)?stock (?:photo(?:graph(?:y|s)?|s)?|images?|vectors?|pictures?|illustrations?)\b"
    r"|\broyalty[- ]free\b|\b\d{2,5}\s?[x×]\s?\d{2,5}(?:\s?px)?\b"
    rf"|\s*[|–-]\s*(?:{AGENCIES})\s*$",
    re.IGNORECASE,
)
BLANKS, ENDS = re.compile(r"\s+"), re.compile(r"^[\s|,;:–—-]+|[\s|,;:–—-]+$")


def _html(text: str) -> str:
    return TAG.sub(" ", html.unescape(text)) if "&" in text or "<" in text else text


def _markdown(text: str) -> str:
    text = BLOCK.sub("", LINK.sub(r"\1", text))
    return EMPHASIS.sub(lambda found: found[2] or found[4], text)


RULES: dict[str, Callable[[str], str]] = {
    "html": _html,
    "markdown": _markdown,
    "url": lambda text: ADDRESS.sub(" ", text),
    "file name": lambda text: FILE_NAME.sub(" ", text),
    "noise": lambda text: NOISE.sub(" ", text),
    "blanks": lambda text: ENDS.sub("", BLANKS.sub(" ", text)),
}


def clean_alt_text(text: str) -> tuple[str, list[str]]:
    """The text by the rules above, perhaps empty; and the rules that changed it."""
    used = []
    for name, rule in RULES.items():
        cleaned = rule(text)
        if cleaned != text:
            used.append(name)
        text = cleaned
    return text, used
