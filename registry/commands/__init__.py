"""The registry's commands, one module per group."""
