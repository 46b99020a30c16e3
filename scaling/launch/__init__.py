"""Tasks, and the workers that run them."""
