"""Entry points: thin absl programs over the library."""
