"""What a trained model can be asked: its tasks and languages, and an error that says what to do where it can't."""

from collections.abc import Sequence

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.tasks import TASKS, Task, plain
from opensiglip.errors import UserError

LANGUAGE = "en"  # of captions, where no other is asked for and the model was trained on it


def require(model: Pretrained, verb: str, tasks: Sequence[str] = ()) -> None:
    """Raises UserError where there is no decoder, or it was trained on none of the tasks (if any are given)."""
    if model.pipeline is None and model.model.vocabulary:
        raise UserError(f"{model.name} has no tokenizer, so it can't {verb}; fetch or export it again, with its own.")
    if model.model.decoder is None and model.model.pali is None:
        raise UserError(
            f"{model.name} has no decoder, so it can't {verb}; give a run of cap, cappa, locca, siglip2 or tasks."
        )
    if tasks and not set(tasks) & set(model.tasks):
        raise UserError(
            f"{model.name} was trained on {', '.join(model.tasks) or 'no task'} and can't {verb}; "
            f"give a run that was trained on {' or '.join(tasks)}."
        )


def trained_tasks(model: Pretrained) -> list[Task]:
    """The tasks whose questions the model knows; of a user's own only the question, which then stands as typed.

    A file that a run names is not opened: a run may come from anyone.
    """
    own = [Task(name, lambda visit, draw: None, plain, "exact") for name in model.tasks if name not in TASKS]
    return [TASKS[name] for name in model.tasks if name in TASKS] + own


def caption_words(model: Pretrained, language: str | None = None) -> tuple[str, ...]:
    """What stands before a caption, in that language if one is named. Raises UserError on one that it can't write."""
    known = model.languages
    if "caption" in model.tasks:
        language = language or (LANGUAGE if LANGUAGE in known or not known else known[0])
        check_language(model, language)
    elif language is not None and known != (language,):
        check_language(model, language)
        raise UserError(
            f"{model.name} saw {', '.join(known) or 'texts'} without a language prefix, so none can be chosen; "
            "leave it out, or train with the prefix: `opensiglip train tasks --tasks caption`."
        )
    return unchecked_caption_words(model.tasks, language or LANGUAGE, pali=model.model.pali is not None)


def unchecked_caption_words(tasks: Sequence[str], language: str, *, pali: bool) -> tuple[str, ...]:
    """What training put before a caption in that language, whether the model saw the language or not."""
    if "caption" in tasks:
        return (f"caption {language}",)
    return () if tuple(tasks) == ("cap",) and not pali else ("Cap:",)


def check_language(model: Pretrained, language: str) -> None:
    """Raises UserError on a language that the model never saw."""
    if model.languages and language not in model.languages:
        raise UserError(f"{model.name} never saw {language!r}; its captions are in {', '.join(model.languages)}.")
