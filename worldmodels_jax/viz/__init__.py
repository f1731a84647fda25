"""Dream GIFs and learning curves."""
