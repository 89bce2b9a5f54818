"""The study of languages: how often training asks for each of the scenes' fourteen."""

from opensiglip.data.scenes.drawings import LANGUAGES
from studies.settings import AUTO, LARGER, QUICK
from studies.study import Budget, Figure, Run, Study

OTHERS = [code for code in LANGUAGES if code != "en"]
MOSTLY_ENGLISH = ",".join([f"en:{9 * len(OTHERS)}", *(f"{code}:1" for code in OTHERS)])  # 90 %, and 10 % for the others
ORDER = ("english", "90-10", "balanced")

LANGUAGE_STUDY = Study(
    name="languages",
    question="English only, 90 % English, or all languages equally often?",
    about=(
        "SigLIP on scenes with captions in 14 languages, for as many steps. Of its visits all ask for English, 90 % "
        "(SigLIP 2's mixture) or a fourteenth. All runs are judged in the 14 languages: R@10 is their mean, and "
        "beside it English alone. Cross-lingual: a caption of another language finds one of its image among the "
        "English ones. `english` has a tokenizer of English, the other two share one of all languages."
    ),
    data="scenes:drawings=24,objects=1,languages=all",
    runs=(
        Run("english", "siglip", AUTO | {"languages": "en"}),
        Run("90-10", "siglip", AUTO | {"languages": MOSTLY_ENGLISH}),
        Run("balanced", "siglip", AUTO),
    ),
    figures=(
        Figure("retrieval", "image_to_text_r10", "image to text, R@10", ORDER),
        Figure("retrieval", "text_to_image_r10", "text to image, R@10", ORDER),
        Figure("retrieval", "languages: en: image_to_text_r10", "English, image to text", ORDER[::-1]),
        Figure("retrieval", "languages: en: text_to_image_r10", "English, text to image", ORDER[::-1]),
        Figure("retrieval", "cross_lingual_r10", "cross-lingual, R@10", ORDER),
    ),
    budgets={
        "cpu-hour": Budget(QUICK | {"steps": 900}, {"count": 500}),
        "gpu-10min": Budget(LARGER | {"steps": 3000}, {"count": 500}),
    },
)
