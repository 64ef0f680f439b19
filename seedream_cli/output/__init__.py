"""What the user sees: messages, progress, JSON and tables. Reads results and ledger records, runs nothing."""
