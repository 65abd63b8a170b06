"""Routing: from what a connection says to the tenant's route, with a cache in front of the registry."""
