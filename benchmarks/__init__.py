"""Side-by-side measurements: ours and its peers in turn, in fresh processes with the same number of threads."""
