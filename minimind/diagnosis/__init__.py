"""What a run's numbers say about whether it learns: reads metrics, touches no engine."""
