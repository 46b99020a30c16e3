"""Training curves: the law of a run as it goes."""
