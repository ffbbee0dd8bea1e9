"""Training losses; each is a module or function that knows nothing of the models."""
