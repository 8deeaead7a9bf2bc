"""Passwords are never printed: not by an error about their setting, whatever stands there, and not by a report."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from service.errors import TamisError
from service.operations.doctor import examine
from service.settings import SECRETS, Settings, load
from service.settings_file import database_url
from service.storage.database.open import has_database, name_of_database, open_database

SECRET = "hunter2swordfish"
NUMBER = 8675309753
# As TOML; each holds the secret, or the number.
WRONG = (
    str(NUMBER), f"{NUMBER}.5", f"-{NUMBER}", "8675-03-09", f"['{SECRET}']", f"[[['{SECRET}']]]", f"{{a = '{SECRET}'}}",
    f"{{{SECRET} = 1}}", f"{{a = {{b = ['{SECRET}']}}}}", f"[{{a = '{SECRET}'}}]", f"['{SECRET}', {NUMBER}]",
    f"{SECRET}", f"'{SECRET}", f"'{SECRET}' '{SECRET}'", f"'{SECRET}'\n{{name}} = '{SECRET}'", f"b'{SECRET}'",
    f"'''{SECRET}", f"\"{SECRET}\\q\"", f"'{SECRET}\x01'", f"['{SECRET}'", f"{{a = '{SECRET}'",
)  # fmt: skip
MISPLACED = (
    f"web_pasword = '{SECRET}'", f"[products.lid]\nweb_password = '{SECRET}'",
    f"[[products]]\nweb_password = '{SECRET}'",
    f"products = ['{SECRET}']", f"[products]\nlid = {{database_url = '{SECRET}'}}",
    f"[products.lid.database_url]\na = '{SECRET}'", f"web_hosts = {{a = '{SECRET}'}}", f"[web]\npassword = '{SECRET}'",
)  # fmt: skip
URLS = (
    f"postgresql://u:{SECRET}@127.0.0.1:1/tamis", f"postgresql://u@127.0.0.1:1/tamis?password={SECRET}",
    f"postgresql://u@127.0.0.1:1/tamis?sslpassword={SECRET}&sslmode=require", f"postgresql://u:p@{SECRET}@127.0.0.1:1/t",
    f"postgresql://u:12/{SECRET}@127.0.0.1:1/t", f"postgresql://u:{SECRET}@127.0.0.1:port/t",
    f"postgresql://u:{SECRET}@127.0.0.1:1", f"mysql://u:{SECRET}@127.0.0.1/t", f"{SECRET}", f"//u:{SECRET}@127.0.0.1/t",
    f"host=127.0.0.1 password={SECRET}", f" postgresql://u:{SECRET}@127.0.0.1:1/t",
    f"postgresql:u:{SECRET}@127.0.0.1/t",
    f"postgresql://u:{SECRET}@127.0.0.1:1/t?plugin=x", f"postgresql://u:{SECRET}@127.0.0.1:1/t?connect_timeout=x",
    f"postgresql://u:{SECRET}@127.0.0.1:1/t?no_such=x&passwd={SECRET}", f"postgresql://u:{SECRET}@[::1/t",
    f"postgresql://u:{SECRET}\\u0000@127.0.0.1:1/t", f"postgresql://u:{SECRET}@:1/t?host=/absent&user={SECRET}",
)  # fmt: skip


def said_of(root: Path) -> list[str]:
    """Return what every way to the settings of `root` and to its database says."""
    said = []
    for step in (load, database_url, name_of_database, has_database, open_database, examine):
        try:
            found = step(root)
        except TamisError as error:
            said.append(str(error))
        else:
            if step is not database_url:  # which is for whoever connects
                said.append(json.dumps(found, default=str) + repr(found))
    return said


def leaks(said: list[str]) -> list[str]:
    return [one for one in said if any(part in one for part in (SECRET, SECRET[:8], str(NUMBER), "8675, 3", "8675-03"))]


def test_every_setting_that_is_a_secret_is_known_as_one():
    assert {"database_url", "web_password"} == SECRETS
    assert not [name for name in Settings.model_fields if "password" in name and name not in SECRETS]


@pytest.mark.parametrize(("name", "value"), list(itertools.product(sorted(SECRETS), WRONG)))
def test_a_secret_of_any_wrong_type_is_refused_by_name_and_not_shown(root: Path, name, value):
    (root / "tamis.toml").write_text(f"{name} = {value.replace('{name}', name)}\n")
    said = said_of(root)
    assert not leaks(said)
    # By its name or, where the file is no TOML, by the file's.
    assert name in said[0] or "expected TOML" in said[0], said[0]


@pytest.mark.parametrize("text", MISPLACED)
def test_a_secret_in_the_wrong_place_is_not_shown(root: Path, text):
    (root / "tamis.toml").write_text(text + "\n")
    said = said_of(root)
    assert not leaks(said) and any("setting" in one for one in said)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("where", ["file", "environment"])
def test_the_password_of_a_url_is_not_shown(root: Path, monkeypatch, url, where):
    pytest.importorskip("psycopg")
    if where == "file":
        (root / "tamis.toml").write_text(f'database_url = "{url}"\n')
    elif "\\u0000" not in url:
        monkeypatch.setenv("TAMIS_DATABASE_URL", url)
    else:
        pytest.skip("no variable holds a NUL")
    assert not leaks(said_of(root))


@pytest.mark.parametrize("variable", ["TAMIS_WEB_PASSWORD__X", "TAMIS_DATABASE_URL__X", "TAMIS_PRODUCTS"])
def test_a_secret_in_a_variable_of_another_kind_is_not_shown(root: Path, monkeypatch, variable):
    monkeypatch.setenv(variable, SECRET)
    assert not leaks(said_of(root))


@pytest.mark.parametrize("variable", ["TAMIS_PRODUCTS", "TAMIS_WEB_HOSTS"])
def test_a_variable_that_is_no_json_is_refused_by_the_name_of_the_setting(root: Path, monkeypatch, variable):
    monkeypatch.setenv(variable, SECRET)
    with pytest.raises(TamisError, match=f"{variable.removeprefix('TAMIS_').lower()}.*") as caught:
        load(root)
    assert SECRET not in str(caught.value) and "JSON" in str(caught.value)


def test_a_wrong_value_of_another_setting_is_still_shown(root: Path):
    (root / "tamis.toml").write_text("settle_time_s = 'soon'\nweb_hosts = {a = 1}\n")
    with pytest.raises(TamisError, match=r"settle_time_s: .*found 'soon'.*web_hosts: .*found a table or"):
        load(root)
