"""Memory and communication of a run, by arithmetic: before anything is allocated, without a GPU or a process group."""
