"""A student of another shape: new weights for another configuration."""
