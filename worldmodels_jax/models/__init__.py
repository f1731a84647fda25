"""World models, one a file; `world_model.WorldModel` is the interface they all return."""
