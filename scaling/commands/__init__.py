"""The verbs of the `isoflop` command."""
