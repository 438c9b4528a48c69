"""ONNX and ONNX Runtime: graphs that are written directly, and what phones need beside them."""
