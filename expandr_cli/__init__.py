"""The command `expandr`: one module per group of commands; nothing is computed here."""
