"""The page on a database server: every page and every answer of the API, and each write whose SQL differs there.

The tests are those of the other modules, with a root whose database is on a server.
"""

# ruff: noqa: F401 (what is imported is collected here)

from __future__ import annotations

from pathlib import Path

import pytest

from service.root import FOLDERS
from service.storage.database.open import open_database
from tests.service.web.conftest import IMAGES
from tests.service.web.test_api import (
    test_every_path_of_the_description_is_there_and_says_what_it_does,
    test_filters_of_the_review_are_those_of_the_page,
    test_form_htmx_and_api_end_in_the_same_rows_and_places,
    test_label_taken_back_brings_the_file_back_and_keeps_the_history,
    test_many_are_labelled_at_once_or_none,
    test_most_uncertain_come_first,
    test_note_and_name_of_control_characters_are_stored_plain,
    test_one_image_is_told_with_all_that_belongs_to_it,
    test_pages_of_images_join_to_all_of_them_newest_first,
    test_pages_stay_as_they_were_while_images_arrive_and_are_labelled,
    test_promotion_and_rollback_change_the_champion_with_who_and_why,
    test_rate_is_tried_without_a_change_and_chosen_with_one,
)
from tests.service.web.test_pages import (
    test_every_filter_narrows_the_wall_and_is_kept_by_its_links,
    test_explorer_says_how_many_change_sides_and_applies_without_retraining,
    test_image_page_tells_history_model_and_neighbours,
    test_pages_of_the_wall_follow_their_links_to_all_images,
    test_promotion_and_rollback_ask_first_and_say_what_will_be,
    test_reading_changes_nothing,
    test_today_says_what_came_what_is_wrong_and_what_it_cost,
    test_today_says_where_drift_began_and_forgets_it_with_its_champion,
    test_wall_begins_with_what_the_challenger_judges_otherwise,
)
from tests.support.brightness_version import install
from tests.support.made_root import fill
from tests.support.postgres_server import PostgresServer
from tests.support.visitor import Visitor


@pytest.fixture
def root(tmp_path: Path, postgres: PostgresServer) -> Path:
    """An empty root whose database is on a server."""
    root = tmp_path / "root"
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    (root / "tamis.toml").write_text(f'database_url = "{postgres.url()}"\n')
    open_database(root, create=True).dispose()
    return root


@pytest.fixture
def ids(root: Path) -> list[str]:
    """Ids of images of `default`, oldest first, in a root with a champion and a challenger."""
    install(root)
    install(root, version="v2", state="challenger", graph_offset=1.0)
    return fill(root, IMAGES)


@pytest.fixture
def reader(visitor: Visitor) -> Visitor:
    """Somebody at the page of the root; nothing is shared here."""
    return visitor
