"""What is trained: layers, one Block, the transformers, and their accounting."""
