"""One trial, wherever it runs: data, training, checkpoints, evaluation."""
