"""The contrasts that an example gives: of a scene by its plan, of a row of the user's by its `negative_caption`."""

from collections.abc import Sequence

from opensiglip.data.example import Example
from opensiglip.data.scenes.contrasts import Contrast, of_scene
from opensiglip.data.scenes.phrases import Placed


def contrasts(example: Example, elsewhere: Sequence[Placed], languages: Sequence[str], seed: int) -> list[Contrast]:
    """Those of an example: of a scene made here, else the row's caption beside its `negative_caption`, text or list.

    `elsewhere`: drawings of other scenes, one of which takes the place of one that stands here.
    """
    if "scene_plan" in example.extras:
        scene, plan = example.extras["scene_plan"]
        return list(of_scene(scene, plan, elsewhere, languages, seed))
    given = example.extras.get("negative_caption")
    negatives = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    texts = tuple(text for text in negatives if isinstance(text, str) and text.strip())
    if not texts or not example.captions:
        return []
    kind, caption = example.extras.get("label"), example.captions[0]  # the label is SugarCrepe's file: add_att, ...
    return [Contrast(kind if isinstance(kind, str) else "pairs", caption.text, texts, caption.language)]
