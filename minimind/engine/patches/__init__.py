"""Changes to DeepSpeed: every use of its private names, each with the versions that it was tested on."""
