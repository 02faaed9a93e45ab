"""Log-probs, losses and the learning-rate schedule: pure functions of tensors."""
