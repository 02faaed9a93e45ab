"""The way out of a run: weights of any run, checkpoint or file in the form that other programs load."""
