"""From flags and files to a run that is ready to train."""
