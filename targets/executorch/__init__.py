"""ExecuTorch: one .pte with its weights, computed by XNNPACK."""
