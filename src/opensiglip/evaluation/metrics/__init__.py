"""The metrics, without models."""
