"""What operators see of a node: its log, its metrics, its health."""
