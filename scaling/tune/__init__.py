"""Trains the grid of learning rates and batches that a hyperparameter law is fitted to."""
