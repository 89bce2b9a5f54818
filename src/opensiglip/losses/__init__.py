"""The losses: equations with their slopes, and the large ones as fused operations."""
