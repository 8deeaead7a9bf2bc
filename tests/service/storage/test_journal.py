"""The choice of journal by SQLite's version."""

import pytest

from service.storage.database.journal import journal_choice


@pytest.mark.parametrize("version", [(3, 7, 0), (3, 40, 1), (3, 44, 5), (3, 44, 7), (3, 50, 6), (3, 51, 0), (3, 51, 2)])
def test_versions_with_the_wal_reset_bug_get_a_rollback_journal_that_syncs_its_folder(version):
    choice = journal_choice(version)
    assert (choice.mode, choice.synchronous) == ("DELETE", "EXTRA")
    assert "WAL-reset bug" in choice.reason and ".".join(map(str, version)) in choice.reason


@pytest.mark.parametrize("version", [(3, 44, 6), (3, 50, 7), (3, 51, 3), (3, 52, 0), (4, 0, 0)])
def test_versions_without_the_bug_get_a_write_ahead_log_synced_at_each_commit(version):
    choice = journal_choice(version)
    assert (choice.mode, choice.synchronous) == ("WAL", "FULL")


def test_a_version_before_the_write_ahead_log_gets_a_rollback_journal():
    choice = journal_choice((3, 6, 23))
    assert choice.mode == "DELETE" and "no write-ahead log" in choice.reason
