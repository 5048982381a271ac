"""What needs torch: training, prediction, checkpoints, processes."""
