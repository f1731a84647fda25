"""Replay and views of its sequences; data sets, procedural and read from files."""
