"""What is learned: data, folds, models, losses, scores and regularizers, each for one model."""
