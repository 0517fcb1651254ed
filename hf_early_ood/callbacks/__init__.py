"""Trainer callbacks: they translate Trainer events into calls of the modules below, and nothing else."""
