"""What a user edits: `ml_collections` configs, one runnable file per experiment."""
