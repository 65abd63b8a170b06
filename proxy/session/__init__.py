"""What the proxy knows of a conversation: relay rules, pins, parameters; sans-IO."""
