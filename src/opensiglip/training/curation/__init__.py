"""Active curation: which examples of a super-batch a step trains on."""
