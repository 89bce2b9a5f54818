"""Studies: a question, put to several recipes under equal conditions, and answered on one page."""
