"""The compression front end: methods that change a model's weights, on the grid of the format that ships them."""
