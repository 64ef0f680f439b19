"""The SQLite ledger of what was sent, paid and saved."""
