"""The hyperparameter law: the best learning rate, batch size and weight-decay timescale."""
