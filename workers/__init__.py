"""Workers: take jobs from a tier's queues, run them in an engine, commit the outcome."""
