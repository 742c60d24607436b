"""What the training scripts share: command line, training loop, checkpoints, logs."""
