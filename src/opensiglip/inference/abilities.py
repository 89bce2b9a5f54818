"""What a model can be asked: its tasks and languages, and what to do where it can't, each in a sentence."""

from collections.abc import Sequence

from opensiglip.data.tasks import TASKS, Task, plain
from opensiglip.errors import UserError
from opensiglip.inference.subject import Subject

LANGUAGE = "en"  # of captions, where nothing else is asked for and the model saw it


def require(subject: Subject, verb: str, tasks: Sequence[str]) -> None:
    """Raises UserError where nothing writes, or was trained on none of the tasks (of no tasks: on any)."""
    if subject.decoder is None and subject.pali is None:
        raise UserError(
            f"{subject.name} has no decoder, so it can't {verb}; give a run of cap, cappa, locca, siglip2 or tasks."
        )
    if tasks and not set(tasks) & set(subject.tasks):
        raise UserError(
            f"{subject.name} was trained on {', '.join(subject.tasks) or 'no task'} and can't {verb}; "
            f"give a run that was trained on {' or '.join(tasks)}."
        )


def trained_tasks(subject: Subject) -> list[Task]:
    """The tasks whose questions the model knows; of a user's own only the question, which then stands as typed.

    A file that a run names is not opened: a run may come from anyone.
    """
    own = [Task(name, lambda visit, draw: None, plain, "exact") for name in subject.tasks if name not in TASKS]
    return [TASKS[name] for name in subject.tasks if name in TASKS] + own


def caption_words(subject: Subject, language: str | None = None) -> tuple[str, ...]:
    """What stands before a caption, in that language if one is named. Raises UserError where it can't be had."""
    known = subject.languages
    if "caption" in subject.tasks:
        language = language or (LANGUAGE if LANGUAGE in known or not known else known[0])
        check_language(subject, language)
        return (f"caption {language}",)
    if language is not None and known != (language,):
        check_language(subject, language)
        raise UserError(
            f"{subject.name} saw {', '.join(known) or 'texts'} without a mark of the language, so none can be chosen; "
            "leave it out, or train with the mark: `opensiglip train tasks --tasks caption`."
        )
    return () if subject.tasks == ("cap",) and subject.pali is None else ("Cap:",)


def check_language(subject: Subject, language: str) -> None:
    """Raises UserError on a language that the model never saw."""
    if subject.languages and language not in subject.languages:
        raise UserError(f"{subject.name} never saw {language!r}; its captions are in {', '.join(subject.languages)}.")
