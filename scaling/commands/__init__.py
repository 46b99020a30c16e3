"""The commands of `isoflop`: a file each, whose docstring is its help."""
