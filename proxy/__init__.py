"""The data plane: a PostgreSQL wire-protocol proxy with a pool of backends behind every tenant."""
