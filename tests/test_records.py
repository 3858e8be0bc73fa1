"""Records keep their provenance, appear whole or not at all, and say what is wrong with a file that is none."""

import json

import pandas as pd
import pytest

from chexreason import config, records

PROVENANCE = {"study": "mini", "phantom": True, "seed": 3}


@pytest.fixture
def table():
    return pd.DataFrame({"film": ["f1", "f2"], "labels": [["Edema"], []], "reward": [0.5, None]})


@pytest.fixture
def study(tmp_path):
    """The default study with its records in a temporary folder."""
    file = tmp_path / "params" / "mini.yaml"
    file.parent.mkdir()
    file.write_text(config.find("params/mini.yaml").read_text())
    return config.load(file)


def test_a_table_comes_back_as_it_was_with_its_origin(table, tmp_path):
    records.save(table, tmp_path / "deep" / "answers.parquet", PROVENANCE)
    back = records.load(tmp_path / "deep" / "answers.parquet")
    assert back.attrs["provenance"] == PROVENANCE
    assert list(back) == list(table) and [list(each) for each in back["labels"]] == [["Edema"], []]
    pd.testing.assert_series_equal(back["reward"], table["reward"])


def test_the_same_table_and_origin_give_the_same_bytes(table, tmp_path):
    for name in ("one", "two"):
        records.save(table, tmp_path / f"{name}.parquet", PROVENANCE)
    assert records.sha256(tmp_path / "one.parquet") == records.sha256(tmp_path / "two.parquet")


def test_the_index_is_not_kept(table, tmp_path):
    records.save(table.set_index("film").reset_index().iloc[::-1], tmp_path / "a.parquet", PROVENANCE)
    assert list(records.load(tmp_path / "a.parquet").index) == [0, 1]


def test_a_write_that_fails_leaves_the_old_record_and_no_debris(table, tmp_path):
    path = tmp_path / "a.parquet"
    records.save(table, path, PROVENANCE)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), records.replacing(path) as temporary:
        temporary.write_bytes(b"half a file")
        _ = 1 / 0
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_the_record_is_not_there_while_it_is_being_written(tmp_path):
    path = tmp_path / "a.json"
    with records.replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"


def test_origin_names_params_package_seed_and_inputs_without_this_machine(study):
    made_from = study.folder / "curate" / "manifest.parquet"
    made_from.parent.mkdir(parents=True)
    made_from.write_bytes(b"films")
    provenance = records.provenance(study, 7, [made_from])
    assert provenance["study"] == "mini" and provenance["params_hash"] == study.hash and provenance["seed"] == 7
    assert provenance["phantom"] is True and set(provenance) >= {"version", "commit"}
    assert provenance["inputs"] == {"curate/manifest.parquet": records.sha256(made_from)}
    assert str(study.folder) not in json.dumps(provenance)


def test_origin_changes_with_the_bytes_of_an_input(study):
    made_from = study.folder / "a.parquet"
    made_from.parent.mkdir(parents=True)
    made_from.write_bytes(b"one")
    before = records.provenance(study, 0, [made_from])
    made_from.write_bytes(b"two")
    assert records.provenance(study, 0, [made_from])["inputs"] != before["inputs"]


def test_without_git_the_commit_is_empty(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert records.commit.__wrapped__() == ""


def test_json_comes_back(tmp_path):
    records.save_json({"films": [1, 2]}, tmp_path / "a.json", PROVENANCE)
    assert records.load_json(tmp_path / "a.json") == {"films": [1, 2]}
    assert json.loads((tmp_path / "a.json").read_text())["provenance"] == PROVENANCE


@pytest.mark.parametrize("load", [records.load, records.load_json])
def test_a_missing_record_is_named_with_what_writes_it(load, tmp_path):
    with pytest.raises(records.RecordError, match=r"answers\.x: no such record; run the notebook"):
        load(tmp_path / "answers.x")


def test_a_parquet_file_of_someone_else_is_no_record(table, tmp_path):
    table.to_parquet(tmp_path / "theirs.parquet")
    with pytest.raises(records.RecordError, match=r"theirs\.parquet: .*names no provenance"):
        records.load(tmp_path / "theirs.parquet")


def test_a_broken_parquet_file_is_named(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(records.RecordError, match=r"broken\.parquet: not a parquet file"):
        records.load(tmp_path / "broken.parquet")


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not a JSON file"), ("[1]", "no provenance"), ('{"a": 1}', "no provenance")]
)
def test_a_json_file_of_someone_else_is_no_record(text, said, tmp_path):
    (tmp_path / "theirs.json").write_text(text)
    with pytest.raises(records.RecordError, match=f"theirs.json: .*{said}"):
        records.load_json(tmp_path / "theirs.json")
