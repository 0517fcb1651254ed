"""Evaluation on ID and OOD sets, with intervals, and paired comparison of arms."""
