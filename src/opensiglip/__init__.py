"""Open pretraining of vision-language encoders."""

__version__ = "0.1.0"
