"""The state store: tables, one transaction per batch, rounds, outbox, ledger."""
