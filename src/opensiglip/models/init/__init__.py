"""Weights of other makes, under our names: one file per format, each a pure function from theirs to ours."""
