"""One reader and one writer a format."""
