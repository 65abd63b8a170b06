"""The operations of administrators, each within a transaction that the caller began."""
