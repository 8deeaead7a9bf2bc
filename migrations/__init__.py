"""The database's schema as steps from one revision to the next, run by Alembic.

Lists the revisions so that the program knows its own without importing Alembic; a test holds the list and the
files together.
"""

REVISIONS = ("0001", "0002", "0003")
HEAD = REVISIONS[-1]
