"""Replay, views of sampled sequences."""
