"""What servers, tenants and logins are, and which changes to them are allowed.  No SQL, no I/O."""
