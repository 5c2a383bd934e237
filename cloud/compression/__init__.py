"""Teacher in, measured student out: distil, prune, quantise, export, evaluate."""
