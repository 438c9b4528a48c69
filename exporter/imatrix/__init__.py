"""Importance matrices from text, in torch: what llama.cpp's llama-imatrix finds, without a GGUF file first."""
