"""A conversation with trained weights in the terminal."""
