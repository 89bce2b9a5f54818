"""What the tab Classify shows: a row a label, with its probability and its share of what was asked as a bar."""

import html
from collections.abc import Mapping

from opensiglip.reports.probability import probability_text, shares_by_odds

OWN = "Each label's own probability, which need not sum to 100 %; the bars show each label's share among these labels."
SHARED = "Shares among these labels, which sum to 100 %."


def labels_table(probabilities: Mapping[str, float], *, own: bool) -> str:
    """HTML of the labels, likeliest first. `own`: is each probability a sigmoid's, not a share of the softmax?"""
    shares = shares_by_odds(probabilities) if own else probabilities
    head = "<th>Label</th><th>Probability</th>" + ("<th>Among these</th>" if own else "")
    rows = "".join(_row(label, one, shares[label], own) for label, one in probabilities.items())
    table = f'<table class="labels"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f"{table}<p>{OWN if own else SHARED}</p>"


def _row(label: str, probability: float, share: float, own: bool) -> str:
    bar = f'<div class="bar"><div style="width: {100 * share:.1f}%"></div></div>'
    cells = f"<td>{probability_text(probability)}</td>" + (f"<td>{probability_text(share)}</td>" if own else "")
    return f'<tr><th dir="auto">{html.escape(label)}{bar}</th>{cells}</tr>'
