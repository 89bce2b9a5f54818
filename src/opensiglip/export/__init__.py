"""Out: a trained or converted model in the forms that other tools load."""
