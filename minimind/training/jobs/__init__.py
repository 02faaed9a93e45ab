"""Jobs: what a step of each kind of training computes."""
