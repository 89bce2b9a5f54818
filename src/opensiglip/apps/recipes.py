"""`opensiglip recipes`."""

from opensiglip.recipes import RECIPES


def recipes() -> None:
    """The table of recipes: paper, objectives, tasks."""
    rows = [("recipe", "paper", "objectives", "tasks", "what")]
    for name, function in RECIPES.items():
        recipe = function(size="tiny")
        what, _, paper = (function.__doc__ or "").strip().splitlines()[0].partition("(")
        terms = " + ".join(objective.name for objective in recipe.objectives)
        tasks = " ".join(recipe.tasks) or "-"
        rows.append((name, paper.rstrip(")."), terms, tasks, what.partition(":")[2].strip().rstrip(".")))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip())
