"""World models as pure JAX functions: see the README and the rooms of this package."""
