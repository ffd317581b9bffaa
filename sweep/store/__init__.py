"""What is known: the study database, its views, and one function a question."""
