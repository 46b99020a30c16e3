"""From text to batches: sources, tokenizers, the token cache, batches."""
