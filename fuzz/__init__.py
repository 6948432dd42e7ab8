"""Coverage-guided fuzzing of ``airy_trio/stomp/`` and of the reader of WebSocket frames: `make fuzz`."""
