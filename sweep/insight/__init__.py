"""What does it mean? Selection and its words, from stored rows alone."""
