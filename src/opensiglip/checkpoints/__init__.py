"""A trained model as one object, read from any format and written to any format."""
