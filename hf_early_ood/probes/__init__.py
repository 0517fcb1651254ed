"""Measurements of a model during training: cheap, exact where they can be, and without a trace."""
