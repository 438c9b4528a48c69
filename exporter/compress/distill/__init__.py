"""Distillation: a smaller model is trained to predict what the one that it was made of predicts."""
