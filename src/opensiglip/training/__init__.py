"""From a recipe and data to a run folder."""
