"""A run: what was asked for, its folder, its training, predictions and records; plans of many runs."""
