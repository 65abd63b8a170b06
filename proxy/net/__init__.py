"""The only rooms with sockets: the relay, logins on both sides, TLS, cancel requests, the listener."""
