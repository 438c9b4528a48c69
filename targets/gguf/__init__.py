"""GGUF for llama.cpp: architectures, tokenizers, quantization by ggml's own kernels, a streaming writer."""
