"""Behaviour learning on top of any world model."""
