"""From an example to the fields of a batch."""
