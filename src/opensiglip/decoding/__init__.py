"""From logits to texts: greedily or by beam, free or along a grammar that admits only boxes."""

from opensiglip.decoding.grammar import BoxGrammar, State
from opensiglip.decoding.search import beam, choose, greedy

__all__ = ["BoxGrammar", "State", "beam", "choose", "greedy"]
