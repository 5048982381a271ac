"""Runs: a job, its folder, its training, its predictions and records; plans of many runs."""
