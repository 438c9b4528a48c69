"""Weights that learn to predict what the source predicts: distillation, quantization-aware training."""
