"""What a notebook shows of what `evaluate` and `train` return: dictionaries with a table of their figures."""

from collections.abc import Iterator
from html import escape
from typing import Any

from opensiglip.reports.evaluation_page import MetricRow, rows


class EvaluationResult(dict[str, Any]):
    """The record of an evaluation, plain JSON; a notebook shows its figures as tables."""

    def _repr_html_(self) -> str:
        parts = [f"<p><b>{escape(self['model'])}</b> on {self['examples']} examples of {escape(self['data'])}</p>"]
        for name, metrics in self["tasks"].items():
            parts.append(f"<b>{escape(name)}</b>{table(rows(metrics, plain=True))}")
        parts += [f"<p>{escape(name)} left out: {escape(reason)}</p>" for name, reason in self["left_out"].items()]
        return "".join(parts + [f"<p>{escape(note)}</p>" for note in self.get("notes", [])])


class TrainingResult(dict[str, Any]):
    """The summary of a run, plain JSON and empty on ranks other than the first; a notebook shows its figures."""

    def _repr_html_(self) -> str:
        if not self:
            return "<p>The first rank has the summary.</p>"
        figures = [MetricRow("", name, value) for name, value in self["figures"].items()]
        return f"<p><b>{escape(self['recipe'])}</b>, {self['steps']} steps, in {escape(self['folder'])}</p>" + table(
            iter(figures)
        )


def table(some: Iterator[MetricRow]) -> str:
    """The rows as an HTML table."""
    lines = [
        f"<tr><td style='text-align:left'>{escape(f'{row.heading}: {row.name}' if row.heading else row.name)}</td>"
        f"<td>{escape(row.value)}</td><td>{escape(row.interval)}</td></tr>"
        for row in some
    ]
    return f"<table>{''.join(lines)}</table>"
