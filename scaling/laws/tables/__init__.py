"""Tables of runs: rows read from files, and conditions on them."""
