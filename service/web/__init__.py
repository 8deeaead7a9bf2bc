"""The web page and its JSON API: reads the database, and writes what people say by the ways that commands use."""
