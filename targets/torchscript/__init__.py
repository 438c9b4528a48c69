"""TorchScript modules for libtorch: the backend."""
