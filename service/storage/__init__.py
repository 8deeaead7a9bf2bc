"""What Tamis keeps: one SQLite file per root, its tables, and one file of queries per noun."""
