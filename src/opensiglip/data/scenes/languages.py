"""The words around the names: how each of 14 languages says where, which, two, and "and"."""

import re
from dataclasses import dataclass

PLACES = ("left", "right", "top", "bottom", "middle", "top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class Grammar:
    """One language's templates: {a} is the subject, {b} the landmark, {at} its word for a place, {place} ours."""

    relations: dict[str, tuple[str, ...]]  # left, right, above, below -> wordings; captions use the first
    placed: tuple[str, ...]  # wordings of a name and its place; captions use the first
    places: tuple[str, ...]  # in the order of PLACES
    pair: str  # two of the same
    comma: str = ", "
    last: str = ", "  # before the last of several
    frames: tuple[str, ...] = ("{}",)  # around a whole caption
    polish: tuple[str, str] = ("", "")  # a pattern and what it becomes, where a sound changes


def _relations(left: str, right: str, above: str, below: str) -> dict[str, tuple[str, ...]]:
    return {
        "left": tuple(left.split("|")),
        "right": tuple(right.split("|")),
        "above": tuple(above.split("|")),
        "below": tuple(below.split("|")),
    }


def _places(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split("|"))


GRAMMARS = {
    "en": Grammar(
        _relations(
            "{a} to the left of {b}|{a} left of {b}",
            "{a} to the right of {b}|{a} right of {b}",
            "{a} above {b}|{a} over {b}",
            "{a} below {b}|{a} under {b}",
        ),
        ("{a} {at}", "{place} {a}"),
        _places(
            "on the left | on the right | at the top | at the bottom | in the middle"
            "| at the top left | at the top right | at the bottom left | at the bottom right"
        ),
        "",  # plurals: `two`
        last=" and ",
        frames=("{}", "a picture of {}", "{}", "an image of {}", "{}", "a drawing of {}"),
    ),
    "es": Grammar(
        _relations(
            "{a} a la izquierda de {b}", "{a} a la derecha de {b}", "{a} por encima de {b}", "{a} por debajo de {b}"
        ),
        ("{a} {at}",),
        _places(
            "a la izquierda | a la derecha | arriba | abajo | en el centro"
            "| arriba a la izquierda | arriba a la derecha | abajo a la izquierda | abajo a la derecha"
        ),
        "dos veces {a}",
        last=" y ",
        polish=(r" y (?=h?i(?!e))", " e "),
    ),
    "ja": Grammar(
        _relations("{b}の左の{a}", "{b}の右の{a}", "{b}の上の{a}", "{b}の下の{a}"),
        ("{at}の{a}",),
        _places("左 | 右 | 上 | 下 | 中央 | 左上 | 右上 | 左下 | 右下"),
        "2つの{a}",
        comma="、",
        last="と",
    ),
    "ko": Grammar(
        _relations("{b} 왼쪽의 {a}", "{b} 오른쪽의 {a}", "{b} 위쪽의 {a}", "{b} 아래쪽의 {a}"),
        ("{at}의 {a}",),
        _places("왼쪽 | 오른쪽 | 위쪽 | 아래쪽 | 가운데 | 왼쪽 위 | 오른쪽 위 | 왼쪽 아래 | 오른쪽 아래"),
        "{a} 두 개",
    ),
    "pt": Grammar(
        _relations("{a} à esquerda de {b}", "{a} à direita de {b}", "{a} acima de {b}", "{a} abaixo de {b}"),
        ("{a} {at}",),
        _places(
            "à esquerda | à direita | no alto | embaixo | no centro"
            "| no alto à esquerda | no alto à direita | embaixo à esquerda | embaixo à direita"
        ),
        "duas vezes {a}",
        last=" e ",
    ),
    "it": Grammar(
        _relations("{a} a sinistra di {b}", "{a} a destra di {b}", "{a} sopra {b}", "{a} sotto {b}"),
        ("{a} {at}",),
        _places(
            "a sinistra | a destra | in alto | in basso | al centro"
            "| in alto a sinistra | in alto a destra | in basso a sinistra | in basso a destra"
        ),
        "due volte {a}",
        last=" e ",
    ),
    "fr": Grammar(
        _relations("{a} à gauche de {b}", "{a} à droite de {b}", "{a} au-dessus de {b}", "{a} au-dessous de {b}"),
        ("{a} {at}",),
        _places(
            "à gauche | à droite | en haut | en bas | au centre"
            "| en haut à gauche | en haut à droite | en bas à gauche | en bas à droite"
        ),
        "deux fois {a}",
        last=" et ",
        polish=(r"\bde (?=[aeiouàâéèêëîïôœ])", "d’"),
    ),
    "de": Grammar(
        _relations(
            "{a} weiter links als {b}",
            "{a} weiter rechts als {b}",
            "{a} weiter oben als {b}",
            "{a} weiter unten als {b}",
        ),
        ("{a} {at}",),
        _places("links | rechts | oben | unten | in der Mitte | oben links | oben rechts | unten links | unten rechts"),
        "zweimal {a}",
        last=" und ",
    ),
    "fa": Grammar(
        _relations("{a} سمت چپ {b}", "{a} سمت راست {b}", "{a} بالای {b}", "{a} زیر {b}"),
        ("{a} {at}",),
        _places(
            "در سمت چپ | در سمت راست | در بالا | در پایین | در وسط"
            "| در بالا سمت چپ | در بالا سمت راست | در پایین سمت چپ | در پایین سمت راست"
        ),
        "دو {a}",
        comma="، ",
        last=" و ",
    ),
    "id": Grammar(
        _relations("{a} di sebelah kiri {b}", "{a} di sebelah kanan {b}", "{a} di atas {b}", "{a} di bawah {b}"),
        ("{a} {at}",),
        _places(
            "di kiri | di kanan | di bagian atas | di bagian bawah | di tengah"
            "| di kiri atas | di kanan atas | di kiri bawah | di kanan bawah"
        ),
        "dua {a}",
        last=" dan ",
    ),
    "zh": Grammar(
        _relations("{b}左边的{a}", "{b}右边的{a}", "{b}上方的{a}", "{b}下方的{a}"),
        ("{at}的{a}",),
        _places("左边 | 右边 | 上方 | 下方 | 中间 | 左上角 | 右上角 | 左下角 | 右下角"),
        "两个{a}",
        comma="、",
        last="和",
    ),
    "ru": Grammar(
        _relations("{a} левее, чем {b}", "{a} правее, чем {b}", "{a} выше, чем {b}", "{a} ниже, чем {b}"),
        ("{a} {at}",),
        _places(
            "слева | справа | вверху | внизу | в центре | вверху слева | вверху справа | внизу слева | внизу справа"
        ),
        "дважды {a}",
        last=" и ",
    ),
    "tr": Grammar(  # "the fox that has a red apple on its right"
        _relations("sağında {b} olan {a}", "solunda {b} olan {a}", "altında {b} olan {a}", "üstünde {b} olan {a}"),
        ("{at} {a}",),
        _places(
            "soldaki | sağdaki | üstteki | alttaki | ortadaki | sol üstteki | sağ üstteki | sol alttaki | sağ alttaki"
        ),
        "iki {a}",
        last=" ve ",
    ),
    "ar": Grammar(
        _relations("{a} على يسار {b}", "{a} على يمين {b}", "{a} فوق {b}", "{a} تحت {b}"),
        ("{a} {at}",),
        _places(
            "على اليسار | على اليمين | في الأعلى | في الأسفل | في الوسط"
            "| في أعلى اليسار | في أعلى اليمين | في أسفل اليسار | في أسفل اليمين"
        ),
        "{a} مرتين",
        comma="، ",
        last=" و",
    ),
}

_SUBSTANCES = (
    "bacon bread broccoli butter coral dna food garlic luggage mate meat oden polish popcorn rice sake salt soap "
    "spaghetti sushi tea thread wood yarn"
)
_MASS = frozenset(_SUBSTANCES.split())
_LIKE_YOU = re.compile("uni|eu|ewe|one|ukulele")  # a vowel to the eye, a consonant to the ear
_LINK = re.compile("( (?:and|behind|in|of|on|with|without) )")  # ends the part of a name that is counted
_IRREGULAR = {
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
    "tooth": "teeth",
    "wolf": "wolves",
    "leaf": "leaves",
    "knife": "knives",
    "scarf": "scarves",
    "sheaf": "sheaves",
    "ox": "oxen",
    "die": "dice",
    "snowman": "snowmen",
}
_SAME = re.compile("(.*fish|deer|moose|bison|squid|shrimp|salmon)$")


def indefinite(name: str) -> str:
    """English: "a fox", "an owl", and names that take no article as they are ("glasses", "popcorn")."""
    if _uncounted(name):
        return name
    spoken = name.lower()
    vowel = spoken[0] in "aeiou" and not _LIKE_YOU.match(spoken)
    return f"{'an' if vowel or spoken.startswith('hour') else 'a'} {name}"


def two(name: str) -> str:
    """English: "two foxes", "two glasses of milk"; "glasses twice" where there is no singular to count."""
    if _uncounted(name) or " and " in name:
        return f"{name} twice"
    head, *rest = _LINK.split(name, maxsplit=1)
    before, space, noun = head.rpartition(" ")
    return "".join(("two ", before, space, _plural(noun), *rest))


def _plural(noun: str) -> str:
    if noun in _IRREGULAR or _SAME.match(noun):
        return _IRREGULAR.get(noun, noun)
    if re.search("[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    if re.search("(s|x|z|ch|sh|ato|nado|osquito|olcano)$", noun):
        return noun + "es"
    return noun + "s"


def _uncounted(name: str) -> bool:
    """Plurals and substances: no article, no counting."""
    noun = _LINK.split(name)[0].split(" ")[-1]
    return noun in _MASS or noun == "skis" or re.search("[^iosu]s$", noun) is not None
