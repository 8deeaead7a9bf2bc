"""Opening SQLite or PostgreSQL, the schema's revision, the journal."""
