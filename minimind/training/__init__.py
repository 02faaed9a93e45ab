"""The order of events in a run, for any job."""
