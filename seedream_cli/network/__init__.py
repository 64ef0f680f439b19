"""Everything that talks HTTP. Knows no ledger and no job."""
