"""Weight sharing: few values for many weights, one layer's weights for two."""
