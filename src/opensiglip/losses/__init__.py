"""The losses: equations with their gradients, and the large ones as fused operations."""
