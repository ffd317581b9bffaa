"""Who else may look: the study database in a browser."""
