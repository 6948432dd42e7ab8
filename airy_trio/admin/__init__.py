"""The admin port for operators: liveness, readiness, metrics, statistics and the console."""
