"""The optimizers of `--optimizer`."""
