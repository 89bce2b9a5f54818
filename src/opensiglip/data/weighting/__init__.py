"""How often sources, examples and languages are read; what writes the weights of examples."""
