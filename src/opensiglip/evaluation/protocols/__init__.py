"""Published protocols by name: a file for each family, and the table of them (`registry`)."""
