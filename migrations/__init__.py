"""The database's schema as steps from one revision to the next, run by Alembic.

Lists the revisions, so that the program knows its own without importing Alembic; a test compares list and files.
"""

REVISIONS = ("0001", "0002", "0003")
HEAD = REVISIONS[-1]
