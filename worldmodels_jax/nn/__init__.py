"""Parts with parameters, each once; flax linen lives here, in models and in agents."""
