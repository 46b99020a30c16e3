"""Checkpoints of the transformers library: read, and written."""
