"""What the two PyTorch formats share: the plan of an export, presets, and reading matrices."""
