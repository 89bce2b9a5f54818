"""How often each example is read, by a file of weights, and what writes one; how often each language is."""
