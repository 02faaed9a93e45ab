"""Weight files of MiniMind and Hugging Face: reading, names, export."""
