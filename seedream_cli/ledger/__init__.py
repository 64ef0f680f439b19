"""The SQLite ledger of what was sent, paid and saved. Knows no job and no network."""
