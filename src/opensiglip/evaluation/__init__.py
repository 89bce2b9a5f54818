"""Models judged on held-out examples."""
