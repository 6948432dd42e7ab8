"""Coverage-guided fuzzing of ``airy_trio/stomp/``: `make fuzz`."""
