"""Maths without parameters, one topic a file."""
