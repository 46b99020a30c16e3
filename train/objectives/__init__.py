"""What a model is trained to predict, and its loss."""
