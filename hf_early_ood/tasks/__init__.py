"""From texts to batches, losses and models, one module a task."""
