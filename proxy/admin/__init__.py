"""The SQL console: what operators ask a node with any PostgreSQL client."""
