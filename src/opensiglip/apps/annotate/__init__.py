"""Pseudo-boxes from an open-vocabulary detector."""
