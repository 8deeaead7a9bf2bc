"""The JSON API: what it answers, that its writes are those of the page, and that bad input is named."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from typer.testing import CliRunner

from service.commands import versions
from tests.faults.root_for_faults import query
from tests.support.brightness_version import install
from tests.support.made_root import fill
from tests.support.visitor import Visitor


def normals(visitor: Visitor) -> list[str]:
    return [one["id"] for one in visitor.json("/images?verdict=normal&limit=1000")["images"]]


# Reading


def test_pages_of_images_join_to_all_of_them_newest_first(reader: Visitor, ids: list[str]) -> None:
    found: list[str] = []
    address: str | None = "/images?limit=7"
    while address is not None:
        page = reader.json(address)
        found += [one["id"] for one in page["images"]]
        address = page["next"] and f"/images?limit=7&cursor={page['next']}"
    assert found == ids[::-1]


@pytest.mark.parametrize("address", ["/images?limit=7", "/review?order=newest&limit=7", "/review?limit=7"])
def test_pages_stay_as_they_were_while_images_arrive_and_are_labelled(
    visitor: Visitor, ids: list[str], address: str
) -> None:
    whole = [one["id"] for one in visitor.json(address.replace("limit=7", "limit=100"))["images"]]
    assert sorted(whole) == ids
    found: list[str] = []
    after = None
    for turn in range(10):
        page = visitor.json(address if after is None else f"{address}&cursor={after}")
        found += [one["id"] for one in page["images"]]
        after = page["next"]
        if after is None:
            break
        # More uncertain than all others, and newer: before the page that is read next.
        fill(visitor.root, 3, seed=100 + turn)
        visitor.json(f"/images/{found[-1]}/label", {"label": "normal"})
    assert [id for id in found if id in ids] == whole
    assert len(set(found)) == len(found)


def test_filters_of_the_review_are_those_of_the_page(visitor: Visitor, ids: list[str]) -> None:
    fill(visitor.root, 10, product="screw", seed=2)
    both = visitor.json("/review?product=screw&verdict=anomaly&score_min=100&score_max=1000&reviewed=all")["images"]
    assert both
    assert {(one["product"], one["verdict"]) for one in both} == {("screw", "anomaly")}
    visitor.json(f"/images/{ids[0]}/label", {"label": "anomaly"})
    assert [one["id"] for one in visitor.json("/review?reviewed=yes")["images"]] == [ids[0]]
    assert ids[0] not in [one["id"] for one in visitor.json("/review?limit=200")["images"]]


def test_most_uncertain_come_first(reader: Visitor, ids: list[str]) -> None:
    shown = [one["uncertainty"] for one in reader.json("/review?limit=100")["images"]]
    assert len(shown) == len(ids)
    assert shown == sorted(shown, reverse=True)


def test_one_image_is_told_with_all_that_belongs_to_it(visitor: Visitor, ids: list[str]) -> None:
    visitor.json(f"/images/{ids[2]}/label", {"label": "normal", "by": "Ada", "note": "scratch allowed"})
    known = visitor.json(f"/images/{ids[2]}")
    assert (known["id"], known["verdict"], known["label"], known["labelled_by"]) == (ids[2], "anomaly", "normal", "Ada")
    assert [(one["label"], one["source"], one["note"]) for one in known["history"]] == [
        ("normal", "api", "scratch allowed")
    ]
    assert known["regions"]
    assert known["training"][0]["label"] == "normal"
    for address in known["files"].values():
        assert visitor.get(address).status_code == 200


def test_every_path_of_the_description_is_there_and_says_what_it_does(reader: Visitor, ids: list[str]) -> None:
    document = reader.json("/openapi.json")
    assert document["openapi"].startswith("3.")
    assert len(document["paths"]) > 10
    given = {"{id}": ids[0], "{product}": "default", "{version}": "v1"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], (method, path)
            assert "422" not in operation["responses"]
            error = operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"]
            assert error == "#/components/schemas/Error"
            assert "Error" in document["components"]["schemas"]
            if method == "get":
                for name, value in given.items():
                    path = path.replace(name, value)
                reader.json(path.removeprefix("/api/v1"))


def test_every_path_is_in_the_documents(reader: Visitor) -> None:
    text = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    for path, methods in reader.json("/openapi.json")["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path.removeprefix('/api/v1')}`" in text


def test_description_says_how_the_password_is_sent(root: Path, ids: list[str]) -> None:
    with Visitor(root, web_password="secret") as visitor:
        document = visitor.json("/openapi.json", authorization="Bearer secret")
    assert set(document["components"]["securitySchemes"]) == {"basic", "bearer"}


# Labels


def test_form_htmx_and_api_end_in_the_same_rows_and_places(visitor: Visitor, ids: list[str]) -> None:
    by_form, by_part, by_api = normals(visitor)[:3]
    visitor.send("/who", {"who": "Ada"})
    form = visitor.send("/review/label", {"id": by_form, "label": "anomaly", "note": "dent", "back": "/review"})
    assert (form.status_code, form.headers["location"]) == (303, "/review")
    part = visitor.send("/review/label", {"id": by_part, "label": "anomaly", "note": "dent"}, **{"hx-request": "true"})
    assert part.status_code == 200
    assert f'id="card-{by_part}"' in part.text
    assert "<html" not in part.text
    visitor.json(f"/images/{by_api}/label", {"label": "anomaly", "by": "Ada", "note": "dent"})
    said = query(visitor.root, "SELECT image_id, label, labelled_by, source, note FROM reviews ORDER BY id")
    assert said == [
        {"image_id": id, "label": "anomaly", "labelled_by": "Ada", "source": source, "note": "dent"}
        for id, source in ((by_form, "web"), (by_part, "web"), (by_api, "api"))
    ]
    kept = []
    for id in (by_form, by_part, by_api):
        [row] = query(visitor.root, "SELECT path, state, label, verdict FROM results WHERE id = ?", id)
        assert (row["state"], row["label"], row["verdict"]) == ("placed", "anomaly", "normal")
        assert row["path"].startswith("anomaly/default/")
        assert id in row["path"]
        assert (visitor.root / row["path"]).is_file()
        assert not list((visitor.root / "normal").rglob(f"*{id}*"))
        kept += query(visitor.root, "SELECT label, added_by FROM training_pictures WHERE image_id = ?", id)
    assert kept == [{"label": "anomaly", "added_by": "Ada"}] * 3


def test_label_taken_back_brings_the_file_back_and_keeps_the_history(visitor: Visitor) -> None:
    id = normals(visitor)[0]
    before = visitor.json(f"/images/{id}")["path"]
    assert visitor.json(f"/images/{id}/label", {"label": "anomaly"})["path"] != before
    assert visitor.json(f"/images/{id}/label", {"label": None})["path"] == before
    known = visitor.json(f"/images/{id}")
    assert known["label"] is None
    assert [one["label"] for one in known["history"]] == [None, "anomaly"]
    assert (visitor.root / before).is_file()


def test_many_are_labelled_at_once_or_none(visitor: Visitor, ids: list[str]) -> None:
    some = normals(visitor)[:5]
    error = visitor.json("/labels", {"ids": [*some, "01ARZ3NDEKTSV4RRFFQ69G5FAV"], "label": "anomaly"}, 409)
    assert "01ARZ3NDEKTSV4RRFFQ69G5FAV" in error["error"]
    assert query(visitor.root, "SELECT * FROM reviews") == []
    done = visitor.json("/labels", {"ids": some, "label": "anomaly"})["labelled"]
    assert [(one["id"], one["label"], one["state"]) for one in done] == [(id, "anomaly", "placed") for id in some]
    again = visitor.json("/labels", {"ids": [some[0], some[0]], "label": "anomaly"})["labelled"]
    assert len(again) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "label"),
        ({"label": "broken"}, "label"),
        ({"label": 1}, "label"),
        ({"label": ["normal"]}, "label"),
        ({"lable": "normal"}, "lable"),
        ({"label": "normal", "by": "x" * 101}, "by"),
        ({"label": "normal", "note": "x" * 1001}, "note"),
        ({"label": "normal", "note": 7}, "note"),
        ({"label": "normal", "note": "\ud800"}, "note"),
        ([], "body"),
        ("normal", "body"),
        (None, "body"),
    ],
)
def test_label_that_is_none_is_refused_by_the_name_of_its_field(
    reader: Visitor, ids: list[str], body: Any, field: str
) -> None:
    answer = reader.client.post(
        f"/api/v1/images/{ids[0]}/label", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422, answer.text
    assert field in answer.json()["error"]
    assert query(reader.root, "SELECT * FROM reviews") == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"label": ' + b"[" * 100_000, b"1" * 10_000, b"NaN"])
def test_what_is_no_json_is_refused(reader: Visitor, ids: list[str], content: bytes) -> None:
    answer = reader.client.post(
        f"/api/v1/images/{ids[0]}/label", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]


@pytest.mark.parametrize("body", [{"ids": []}, {"ids": ["x"] * 501}, {"ids": "x"}, {"ids": [""]}, {"ids": ["x" * 65]}])
def test_number_of_labels_at_once_has_a_bound(reader: Visitor, body: dict[str, Any]) -> None:
    assert "ids" in reader.json("/labels", body | {"label": "normal"}, 422)["error"]


def test_note_and_name_of_control_characters_are_stored_plain(visitor: Visitor, ids: list[str]) -> None:
    visitor.json(f"/images/{ids[0]}/label", {"label": "normal", "by": "  ", "note": "a\x00b\x1b[31m\u202ec"})
    [said] = visitor.json(f"/images/{ids[0]}")["history"]
    assert said["labelled_by"] is None
    assert said["note"] == "ab[31mc"


@pytest.mark.parametrize(
    "address",
    [
        "/images?limit=0", "/images?limit=100000", "/images?limit=1e3", f"/images?limit={'9' * 5000}",
        "/images?verdict=bad", "/images?state=gone", "/images?since=yesterday",
        "/images?until=0001-01-01T00:00%2B23:00",
        "/images?cursor=nothing", f"/images?cursor={'x' * 65}", f"/images?product={'x' * 401}",
        "/review?order=random", "/review?score_min=high", "/review?cursor=nothing", "/review?reviewed=yes&cursor=x",
        f"/review?reviewed=yes&cursor={'9' * 40}", "/review?limit=201", "/review?verdict=missing",
        "/retrainings?limit=-1", "/thresholds/default?rate=0", "/thresholds/default?rate=1",
        "/thresholds/default?rate=nan", "/thresholds/default?rate=inf", "/thresholds/default?last=0",
        "/thresholds/default?last=99999999999999999999", "/energy?per=hour", "/energy?since=1970-01-01",
    ],
)  # fmt: skip
def test_query_that_cannot_be_answered_is_refused_by_name(reader: Visitor, address: str) -> None:
    answer = reader.client.get(f"/api/v1{address}")
    assert answer.status_code in (400, 422), answer.text
    name = address.partition("?")[2].split("=")[-2].rpartition("&")[2]
    assert {"rate": "rate", "cursor": ""}.get(name, name) in answer.json()["error"]
    assert len(answer.json()["error"]) < 1000


# Versions and thresholds


def test_promotion_and_rollback_change_the_champion_with_who_and_why(visitor: Visitor) -> None:
    visitor.client.cookies.set("tamis_who", "Ada")
    promoted = visitor.json("/models/default/v2/promote", {"reason": "sees dents", "expected": "v1"})
    assert (promoted["version"], promoted["state"]) == ("v2", "champion")
    assert visitor.json("/status")["champions"] == {"default": "v2"}
    back = visitor.json("/models/default/rollback", {"reason": "too many alarms", "expected": "v2"})
    assert back["version"] == "v1"
    assert "rolled back by Ada on the page: too many alarms" in back["reason"]
    states = {one["version"]: one["state"] for one in visitor.json("/models?product=default")["models"]}
    assert states["v1"] == "champion"


@pytest.mark.parametrize("address", ["/models/default/v2/promote", "/models/default/rollback"])
def test_change_of_what_is_champion_no_more_is_refused(visitor: Visitor, address: str) -> None:
    visitor.json("/models/default/v2/promote", {})
    error = visitor.json(address, {"expected": "v1"}, 409)["error"]
    assert "expected v1 as its champion" in error
    assert "found v2" in error
    assert visitor.json("/status")["champions"] == {"default": "v2"}


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/models/default/v9/promote", 404), ("/models/nothing/v1/promote", 404), ("/models/nothing/rollback", 404),
        ("/models/default/rollback", 409), ("/models/..%2F../v1/promote", 404),
        ("/models/default/..%2Fv1/promote", 404),
    ],
)  # fmt: skip
def test_change_to_what_is_not_there_is_refused(reader: Visitor, address: str, status: int) -> None:
    reader.json(address, {}, status)
    assert reader.json("/status")["champions"] == {"default": "v1"}


def test_version_whose_files_are_damaged_is_shown_and_never_promoted(visitor: Visitor) -> None:
    graph = visitor.root / "models" / "default" / "v2" / "model.bin"
    graph.write_bytes(b"damaged")
    answer = visitor.client.post("/api/v1/models/default/v2/promote", json={})
    assert answer.status_code in (409, 500)
    assert "v2" in answer.json()["error"]
    assert visitor.json("/status")["champions"] == {"default": "v1"}
    (visitor.root / "models" / "default" / "v2" / "model.json").write_text("{}")
    assert visitor.json("/models/default/v2")["damaged"]


def test_rate_is_tried_without_a_change_and_chosen_with_one(visitor: Visitor, ids: list[str]) -> None:
    tried = visitor.json("/thresholds/default?rate=0.1")
    assert tried["images"] == len(ids)
    assert tried["threshold"] < tried["present_threshold"] == 100.0
    assert tried["to_anomaly"] > 0 == tried["to_normal"]
    assert visitor.json("/thresholds")["thresholds"][0]["chosen"] is None
    chosen = visitor.json("/thresholds/default", {"false_alarm_rate": 0.1})
    assert chosen["present_threshold"] == tried["threshold"]
    assert visitor.json("/thresholds")["thresholds"][0]["chosen"]["false_alarm_rate"] == 0.1
    visitor.json("/thresholds/default", {"false_alarm_rate": None})
    assert visitor.json("/thresholds/default")["present_threshold"] == 100.0


def test_rate_that_the_calibration_is_too_small_for_is_refused(root: Path) -> None:
    install(root, scores=range(1, 21))
    fill(root, 10)
    with Visitor(root) as visitor:
        tried = visitor.json("/thresholds/default?rate=0.01")
        assert tried["threshold"] is None
        assert tried["to_anomaly"] is None
        assert tried["lowest_rate"] == pytest.approx(1 / 21, abs=0.005)
        error = visitor.json("/thresholds/default", {"false_alarm_rate": 0.01}, 409)["error"]
        assert "20" in error
        assert "default" in error
        form = visitor.send("/thresholds/default", {"rate": "1 %"})
        assert form.status_code == 409
        assert query(root, "SELECT * FROM threshold_choices") == []


def test_rate_cannot_be_chosen_where_the_settings_say_otherwise(root: Path, ids: list[str]) -> None:
    settings = (root / "tamis.toml").read_text()
    (root / "tamis.toml").write_text(f'{settings}threshold_policy = "fixed"\nthreshold_fixed = 90.0\n')
    with Visitor(root) as visitor:
        error = visitor.json("/thresholds/default", {"false_alarm_rate": 0.05}, 409)["error"]
    assert "'fixed'" in error


@pytest.mark.parametrize("rate", [0, 1, -1, 2, 1e308, "0.05", True, [0.05]])
def test_what_is_no_rate_is_refused(reader: Visitor, rate: Any) -> None:
    error = reader.json("/thresholds/default", {"false_alarm_rate": rate}, 422)["error"]
    assert "false_alarm_rate" in error


def test_unknown_product_has_no_threshold(reader: Visitor) -> None:
    assert "nothing" in reader.json("/thresholds/nothing", {"false_alarm_rate": 0.05}, 409)["error"]


def test_product_is_found_whatever_form_its_name_is_asked_in(visitor: Visitor, ids: list[str]) -> None:
    trained = unicodedata.normalize("NFC", "Prüfling")
    install(visitor.root, product=trained)
    for form in ("NFC", "NFD"):
        asked = quote(unicodedata.normalize(form, trained))
        assert [one["product"] for one in visitor.json(f"/models?product={asked}")["models"]] == [trained]
        assert visitor.json(f"/models/{asked}/v1")["product"] == trained
    sent = unicodedata.normalize("NFD", trained)
    listed = CliRunner().invoke(versions.app, ["list", "--root", str(visitor.root), "--product", sent, "--json"])
    assert [one["product"] for one in json.loads(listed.stdout)] == [trained]
