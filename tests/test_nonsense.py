"""Every file that a user hands over, in every way it can be wrong: what is told, in one message and beforehand.

What reads a file's meaning has its own tests (test_params, test_own, test_films, test_review and others); here are the
files that mean nothing: cut, garbled, huge, endless, of another kind, or made to do harm.
"""

import ast
import importlib
import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, command, study_folder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless
from test_films import RAMP, TWELVE_BIT, dicom, huge_jpeg, written

from chexreason import config, models, records
from chexreason.cli import main
from chexreason.data import curate, images, own, sampling
from chexreason.data.film_table import SourceError
from chexreason.data.images import FilmError
from chexreason.inference import predict
from chexreason.teacher import generate, review

MINI = (ROOT / "params" / "mini.yaml").read_text(encoding="utf-8")
GARBAGE = bytes(np.random.default_rng(0).integers(128, 256, 4000, dtype=np.uint8))


def in_its_place(path):
    """Put in the place of a file, one after the other, a folder and a link to itself."""
    path.mkdir()
    yield
    path.rmdir()
    path.symlink_to(path.name)
    yield


# The params file.

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
PARAMS = {
    "empty": (b"", "not a params file: it must hold `key: value` sections"),
    "garbage": (GARBAGE, "not a YAML file: no text in UTF-8; save it as UTF-8"),
    "UTF-16": (MINI.encode("utf-16"), "not a YAML file: no text in UTF-8"),
    "NUL bytes": (b"study: a\x00b", "not a YAML file: unacceptable character #x0000"),
    "a bomb of aliases": (ALIASES.encode(), "aliases (*name) are not allowed; write the value out"),
    "an alias of itself": (b"study: &a [*a]", "aliases (*name) are not allowed"),
    "nested 1,000 deep": (b"a: " + b"[" * 1000, "nested too deeply"),
    "20 MB": (b"a: " + b"x" * 20_000_000, "more than 1,000,000 bytes"),
    "a key twice": (MINI.encode() + b"\nstudy: other\n", "the key 'study' is given twice"),
    "an object of Python": (b'study: !!python/object/apply:os.system ["false"]', "tags (tag:yaml.org,2002:python/obj"),
    "a number of 5,000 digits": (MINI.encode() + b"\nmore: " + b"9" * 5000, "not a YAML file: Exceeds the limit"),
    "a day that is none": (b"study: 2020-13-45", "not a YAML file: month must be in"),
}
VALUES = {
    "no number": ("sft.learning_rate", float("nan"), "should be a finite number, got nan"),
    "infinity": ("grpo.beta", float("inf"), "should be a finite number, got inf"),
    "less than nothing": ("sft.learning_rate", -1.0, "greater than 0, got -1.0"),
    "a count below zero": ("sft.num_train_epochs", -3, "greater than 0, got -3"),
    "a count beyond any": ("sft.num_train_epochs", 10**30, "less than 2147483648"),
    "a seed below zero": ("seeds", [-1], "greater than or equal to 0, got -1"),
    "a seed beyond any": ("curate.seed", 2**40, "less than 4294967296"),
    "a study that leaves its folder": ("study", "../../etc", "got '../../etc'"),
    "a model that leaves its folder": ("models", {"../x": {"name": "x", "path": "x", "dtype": "float32"}}, "'../x'"),
    "markup for a name": ("models.medgemma.name", "<script>", "got '<script>'"),
    "a text of 100,000 letters": ("sft.num_train_epochs", "x" * 100_000, "got 'xxx"),
}


@pytest.mark.parametrize("content, told", PARAMS.values(), ids=PARAMS)
def test_a_params_file_of_the_wrong_kind_is_refused(tmp_path, content, told):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(config.ParamsError) as refused:
        config.load(tmp_path / "mine.yaml")
    assert "mine.yaml: " in str(refused.value) and told in str(refused.value)


@pytest.mark.parametrize("key, value, told", VALUES.values(), ids=VALUES)
def test_a_number_or_name_of_no_use_is_reported_by_key_and_value(tmp_path, key, value, told):
    values = yaml.safe_load(MINI)
    *sections, last = key.split(".")
    section = values
    for each in sections:
        section = section[each]
    section[last] = value
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(config.ParamsError) as refused:
        config.load(tmp_path / "mine.yaml")
    assert key.split(".")[-1] in str(refused.value) and told in str(refused.value)
    assert len(str(refused.value)) < 2000


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_for_a_params_file_are_refused_as_such(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    with pytest.raises(config.ParamsError, match=r"any\.yaml"):
        config.load(file)


# The table of own films.

SECTION = config.Own(
    kind="own", root=".", table="films.csv", columns={"path": "file", "patient": "pid"}, labels={"Edema": "edema"}
)
TABLES = {
    "empty": (b"", "cannot be read as a table: No columns"),
    "garbage": (GARBAGE, "cannot be read as a table: 'utf-8' codec"),
    "UTF-16": ("file,pid,edema\na.png,1,1\n".encode("utf-16"), "cannot be read as a table: 'utf-8' codec"),
    "quotes that never close": (b'file,pid,edema\n"a.png,1,1\n', "cannot be read as a table"),
    "semicolons": (b"file;pid;edema\na.png;1;1\n", "has no column 'file'; its columns are file;pid;edema"),
    "2,000 columns": (b",".join(b"c%d" % each for each in range(2_000)), "has no column 'file'"),
    "a column twice": (b"file,pid,edema,edema\na.png,1,1,0\n", "column 'edema' occurs twice in the heading"),
    "a NUL byte in a name": (b"file,pid,edema\na\x00.png,1,1\n", "row 2: film 'a\\x00' cannot name a file"),
    "a name of 5,000 letters": (b"file,pid,edema\n" + b"a" * 5000 + b".png,1,1\n", "cannot name a file"),
    "a path of spaces": (b"file,pid,edema\n  ,1,1\n", "row 2: the path is blank"),
    "infinity": (b"file,pid,edema\na.png,1,inf\n", "row 2, column 'edema': inf is not a label"),
    "a number of 400 digits": (b"file,pid,edema\na.png,1," + b"9" * 400, "row 2, column 'edema': 999"),
    "a label below -1": (b"file,pid,edema\na.png,1,-3\n", "row 2, column 'edema': -3 is not a label"),
}


@pytest.mark.parametrize("content, told", TABLES.values(), ids=TABLES)
def test_a_table_of_the_wrong_kind_is_refused(tmp_path, content, told):
    (tmp_path / "films.csv").write_bytes(content)
    with pytest.raises(SourceError) as refused:
        own.read(tmp_path, SECTION, tmp_path)
    assert "films.csv" in str(refused.value) and told in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_a_folder_or_an_endless_link_for_a_table_is_reported(tmp_path):
    for _ in in_its_place(tmp_path / "films.csv"):
        with pytest.raises(SourceError, match=r"has no films\.csv"):
            own.read(tmp_path, SECTION, tmp_path)


# Images.


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG of 256 x 256 pixels with more chunks of one's own."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 256, 256, 8, 0, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(bytes(257 * 256))), (b"IEND", b"")]
    summed = [(name + body, len(body)) for name, body in parts]
    framed = [struct.pack(">I", size) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk, size in summed]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def holding(syntax, stream: bytes) -> bytes:
    """A DICOM that says it holds 16 x 16 pixels, and holds `stream`."""
    data = dicom(RAMP, 8)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([stream])
    data["PixelData"].VR = "OB"
    return written(data)


def large(kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (3000, 3000)).save(stream, kind, **options)
    return stream.getvalue()


def deflated() -> bytes:
    data = dicom(TWELVE_BIT)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.PixelData = bytes(50_000_000)
    return written(data)


BOMB = zlib.compress(bytes(100_000_000), 9)
BOMBS = {
    "a text of 100 MB in a PNG": (lambda: png((b"zTXt", b"a\0\0" + BOMB)), "Decompressed data too large"),
    "a profile of 100 MB in a PNG": (lambda: png((b"iCCP", b"a\0\0" + BOMB)), "Decompressed data too large"),
    "2,147,483,647 frames": (lambda: png((b"acTL", struct.pack(">II", 2**31 - 1, 0))), "several frames"),
    "a large JPEG in a small DICOM": (
        lambda: holding(JPEGBaseline8Bit, large("JPEG")),
        "its header says 16 x 16 pixels, its image 3000 x 3000",
    ),
    "a JPEG bomb in a small DICOM": (lambda: holding(JPEGBaseline8Bit, huge_jpeg()), "its image 65000 x 65000"),
    "a large JPEG 2000 in a small DICOM": (
        lambda: holding(JPEG2000Lossless, large("JPEG2000", no_jp2=True)),
        "its header says 16 x 16 pixels, its image 3000 x 3000",
    ),
    "a large JPEG 2000 with a file header": (
        lambda: holding(JPEG2000Lossless, large("JPEG2000")),
        "its header says 16 x 16 pixels, its image 3000 x 3000",
    ),
    "no stream at all": (lambda: holding(JPEGBaseline8Bit, bytes(1000)), "does not begin as a JPEG"),
    "128 MB of one grey, run-length coded in a small DICOM": (
        lambda: holding(RLELossless, struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\0" * 1_000_000),
        "its header says 16 x 16 pixels, its image is more than twice that",
    ),
    "a deflated DICOM": (deflated, "deflated DICOM, whose size is not known before it is unpacked"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make, told", BOMBS.values(), ids=BOMBS)
def test_an_image_that_would_unpack_to_much_more_is_refused_before_it_is_decoded(tmp_path, make, told):
    (tmp_path / "film").write_bytes(make())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FilmError, match=told):
        images.read(tmp_path / "film")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # kilobytes


def test_a_file_larger_than_any_film_a_pipe_and_a_device_are_never_read(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(FilmError, match="more than 250,000,000 bytes"):
        images.read(tmp_path / "huge")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(FilmError, match="not a file"):
            images.read(path)


def test_a_folder_an_endless_link_and_a_name_beyond_any_are_reported(tmp_path):
    for _ in in_its_place(tmp_path / "film"):
        with pytest.raises(FilmError, match=r"cannot be opened: (Is a directory|Too many levels)"):
            images.read(tmp_path / "film")
    with pytest.raises(FilmError, match="cannot be opened: File name too long"):
        images.read(tmp_path / ("a" * 300))


# Records.


@pytest.fixture
def record(tmp_path):
    table = pd.DataFrame({"film": [f"f{each}" for each in range(30)], "reward": np.linspace(0, 1, 30)})
    records.save(table, tmp_path / "table.parquet", {"study": "mini"})
    return tmp_path / "table.parquet"


def test_no_byte_of_a_record_can_change_unseen(record):
    """Each byte of the data, one after another; what describes the data has no checksum, and is not tried."""
    whole, table = record.read_bytes(), records.load(record)
    described = int.from_bytes(whole[-8:-4], "little") + 8
    refused = 0
    for at in range(4, len(whole) - described):
        record.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        try:
            assert records.load(record).equals(table)
        except records.RecordError as error:
            assert "table.parquet: not a parquet file, or a damaged one" in str(error)
            refused += 1
    assert refused > 300


@pytest.mark.parametrize("load", [records.load, records.load_json])
@pytest.mark.parametrize("content", [b"", GARBAGE, bytes(100), b"PAR1" + b"\xff" * 8 + b"PAR1", b"[" * 100_000])
def test_a_file_that_is_no_record_is_reported(tmp_path, load, content):
    (tmp_path / "theirs").write_bytes(content)
    with pytest.raises(records.RecordError, match=r"theirs: not a (parquet|JSON) file"):
        load(tmp_path / "theirs")


def test_a_record_cut_short_a_folder_and_an_invalid_provenance_are_refused(record):
    whole = record.read_bytes()
    for size in range(0, len(whole), 50):
        record.write_bytes(whole[:size])
        with pytest.raises(records.RecordError, match="damaged"):
            records.load(record)
    for provenance in (b"{", b"\xff"):
        pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({records.PROVENANCE: provenance}), record)
        with pytest.raises(records.RecordError, match="names no provenance"):
            records.load(record)
    record.unlink()
    for _ in in_its_place(record):
        for load in (records.load, records.load_json):
            with pytest.raises(records.RecordError, match="no such record"):
                load(record)


def test_a_record_of_another_kind_is_no_manifest_to_follow(record, tmp_path):
    study = config.load(ROOT / "params" / "smoke.yaml")
    section = study.curate.model_copy(update={"frozen": os.path.relpath(record, study.file.parent)})
    pools = {"a": pd.DataFrame({"film": ["f0"]})}
    with pytest.raises(sampling.CurateError, match=r"table\.parquet is not a manifest: it has no column .*split"):
        curate.choose(study.model_copy(update={"curate": section}), pools)


# Verdicts and prompts.


@pytest.mark.parametrize(
    "content", [b"", GARBAGE, b'film,verdict\n"a,b\n', "film,verdict\n".encode("utf-16"), b"a,b\n"]
)
def test_a_file_that_holds_no_verdicts_is_reported(tmp_path, content):
    (tmp_path / "verdicts.csv").write_bytes(content)
    with pytest.raises(review.ReviewError, match=r"verdicts\.csv: (cannot be read as CSV in UTF-8|no column)"):
        review.read(config.load(ROOT / "params" / "smoke.yaml"), tmp_path / "verdicts.csv")


@pytest.mark.parametrize("content", [GARBAGE, "{labels}".encode("utf-16")])
def test_a_prompt_that_is_no_text_is_reported(tmp_path, content):
    values = config.read(ROOT / "params" / "smoke.yaml")
    values["teacher"] = {"kind": "gemini", "model": "m", "seed": 0, "prompts": {"free_reasoning": "mine.txt"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(generate.TeacherError, match=r"prompts\.free_reasoning: mine\.txt cannot be read as text"):
        generate.prompt(config.load(tmp_path / "mine.yaml"), "free_reasoning")


# Adapters and models.

MEDGEMMA, QWEN = (config.Model(name="m", path=f"stand-in:{name}", dtype="float32") for name in ("medgemma", "qwen"))


class Planted:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """A folder with a whole adapter of the stand-in for MedGemma."""
    from peft import get_peft_model

    folder = tmp_path_factory.mktemp("adapters")
    lora = models.lora_config(config.Lora(r=4, lora_alpha=8, lora_dropout=0.0))
    get_peft_model(models.load_base(MEDGEMMA), lora).save_pretrained(str(folder / "whole"))
    return folder


@pytest.fixture
def adapter(adapters, tmp_path):
    return shutil.copytree(adapters / "whole", tmp_path / "adapter")


def test_a_whole_adapter_is_attached(adapter):
    assert models.load_trained(MEDGEMMA, adapter)


WEIGHTS = "adapter_model.safetensors"


def broken_weights(change):
    def change_weights(folder):
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / WEIGHTS)
        save_file(change(weights), folder / WEIGHTS)

    return change_weights


def settings(**changes):
    def change_settings(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change_settings


def content(name: str, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


ADAPTERS = {
    "no settings": (lambda folder: (folder / "adapter_config.json").unlink(), "holds no adapter_config.json"),
    "no weights": (
        lambda folder: (folder / WEIGHTS).unlink(),
        "holds no adapter_model.safetensors",
    ),
    "settings that are no JSON": (content("adapter_config.json", b"{"), "cannot be loaded: Expecting property name"),
    "settings that are a list": (content("adapter_config.json", b"[]"), "cannot be loaded"),
    "settings of no adapter": (content("adapter_config.json", b'{"peft_type": "NONE"}'), "cannot be loaded: 'NONE'"),
    "weights that are garbage": (content(WEIGHTS, GARBAGE), "cannot be loaded: .*header"),
    "no byte of weights": (content(WEIGHTS, b""), "cannot be loaded: .*header too small"),
    "weights of another rank": (settings(r=8), "these adapter weights do not match the base model"),
    "weights for other layers": (
        settings(target_modules=".*vision.*q_proj"),
        "these adapter weights do not match",
    ),
    "weights of which some are missing": (
        broken_weights(lambda weights: dict(list(weights.items())[1:])),
        "these adapter weights do not match",
    ),
    "weights that are no numbers": (
        broken_weights(lambda weights: {name: each * float("nan") for name, each in weights.items()}),
        "has weights that are not finite numbers",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change, told", ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_of_the_wrong_kind_is_refused(adapter, change, told):
    change(adapter)
    with pytest.raises(models.ModelError, match=f"adapter: {told}"):
        models.load_trained(MEDGEMMA, adapter)


def test_an_adapter_of_another_model_is_reported_though_its_weights_would_fit(adapter):
    with pytest.raises(models.ModelError, match=r"belongs to .*medgemma, not .*qwen"):
        models.load_trained(QWEN, adapter)


def test_a_pickle_is_never_loaded_in_place_of_weights(adapter, tmp_path):
    for name in ("adapter_model.bin", "optimizer.pt", "training_args.bin", "rng_state.pth"):
        (adapter / name).write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    models.load_trained(MEDGEMMA, adapter)
    (adapter / WEIGHTS).unlink()
    with pytest.raises(models.ModelError, match=r"holds no adapter_model\.safetensors"):
        models.load_trained(MEDGEMMA, adapter)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_pickles_or_of_remote_code_is_refused_and_runs_nothing(tmp_path):
    ran, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(models.folder("stand-in:medgemma"), folder)
    model = config.Model(name="m", path=str(folder), dtype="float32")
    (folder / "model.safetensors").rename(tmp_path / "weights")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(ran)))
    with pytest.raises(models.ModelError, match=r"model: cannot be loaded: .*no file named model\.safetensors"):
        models.load_base(model)
    (tmp_path / "weights").rename(folder / "model.safetensors")
    (folder / "theirs.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    about = json.loads((folder / "config.json").read_text()) | {"model_type": "theirs"}
    about["auto_map"] = {
        "AutoConfig": "theirs.A",
        "AutoModelForImageTextToText": "theirs.B",
        "AutoProcessor": "theirs.C",
    }
    (folder / "config.json").write_text(json.dumps(about))
    for load in (models.load_base, models.load_processor):
        with pytest.raises(models.ModelError, match="contains custom code"):
            load(model)
    assert not ran.exists()


NEVER_IMPORTED = {"pickle", "dill", "joblib", "marshal", "shelve", "torch.serialization"}
NEVER_CALLED = {"eval", "exec", "compile", "torch.load", "pd.read_pickle", "yaml.unsafe_load", "yaml.full_load"}
NEVER_TRUE = ("trust_remote_code", "allow_pickle", "shell")


@pytest.mark.parametrize("path", sorted((ROOT / "chexreason").rglob("*.py")), ids=lambda path: path.name)
def test_the_package_loads_no_pickle_runs_no_text_and_trusts_no_remote_code(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not {alias.name for alias in node.names} & NEVER_IMPORTED
            assert getattr(node, "module", "") not in NEVER_IMPORTED
        if isinstance(node, ast.Call):
            called, options = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
            assert called not in NEVER_CALLED
            assert all(options.get(name, "False") == "False" for name in NEVER_TRUE)
            assert called != "yaml.load" or ast.unparse(node.args[1]) == "_Loader"


def test_the_trainers_load_their_own_checkpoints_without_running_what_is_in_them():
    """A run that was cut off reads the optimizer, the scheduler and the random state that it wrote itself."""
    from transformers import trainer

    tree = ast.parse(Path(trainer.__file__).read_text(encoding="utf-8"))
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    options = [[(each.arg, ast.unparse(each.value)) for each in load.keywords] for load in loads]
    assert len(loads) >= 4 and all(("weights_only", "True") in given for given in options)


def test_the_loader_of_params_files_makes_nothing_but_plain_values():
    assert issubclass(importlib.import_module("chexreason.config.load")._Loader, yaml.SafeLoader)


# The command line.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plan", "gone.yaml"], "gone.yaml: no such params file"),
        (["plan", "folder"], "folder: no such params file"),
        (["results", "garbage"], "garbage: not a YAML file"),
        (["plan", "a" * 300], "File name too long"),
        (["films", "nih", "gone"], "gone"),
        (["films", "mimic", "garbage"], "garbage"),
        (["review", "params/smoke.yaml", "--verdicts", "folder"], "folder: cannot be read as CSV"),
        (["notebook", "gone.ipynb", "out.ipynb"], "gone.ipynb: no such notebook"),
        (["notebook", "garbage", "out.ipynb"], "garbage: cannot be read as a notebook"),
        (["notebook", "n.ipynb", "out.ipynb", "-p", "seed", "[1"], "-p seed: '[1' is no value"),
        (["book", "params/smoke.yaml", "gone.ipynb"], "gone.ipynb: No such file or directory"),
        (["book", "params/smoke.yaml", "garbage"], "garbage: cannot be read as a notebook"),
    ],
)
def test_the_command_line_tells_a_wrong_file_in_a_line_or_two(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(study_folder(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "garbage").write_bytes(GARBAGE)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said and len(said.splitlines()) <= 3


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="the superuser may open every file")
def test_a_file_that_may_not_be_opened_is_reported(tmp_path):
    (study_folder(tmp_path) / "params" / "smoke.yaml").chmod(0)
    call = [sys.executable, "-c", "import sys; from chexreason.cli import main; sys.exit(main(sys.argv[1:]))"]
    as_nobody = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    for path in [tmp_path, *tmp_path.parents][:-2]:
        path.chmod(path.stat().st_mode | 0o055)
    call = [*as_nobody, *call, "plan", "params/smoke.yaml"]
    said = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (2, "chexreason: params/smoke.yaml: cannot be read: Permission denied\n")


def test_ones_film_that_is_a_bomb_is_reported_before_the_model_is_loaded(tmp_path):
    (study_folder(tmp_path) / "film.dcm").write_bytes(holding(JPEGBaseline8Bit, huge_jpeg()))
    asked = ["--params", "params/smoke.yaml", "--model", "medgemma", "--checkpoint", "untuned"]
    said = command(tmp_path, "predict", *asked, "film.dcm")
    assert said.returncode == 2
    assert said.stderr == "chexreason: film.dcm: its header says 16 x 16 pixels, its image 65000 x 65000\n"


def test_a_reply_moves_no_cursor_and_turns_no_reading_direction_in_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(study_folder(tmp_path))
    reply = "<think>\x1b[2JWide\x07 heart.\n\u202etxet</think><solution>Edema</solution>"
    monkeypatch.setattr(predict, "answer_own_films", lambda *_: [reply])
    arguments = ["predict", "--params", "params/smoke.yaml", "--model", "medgemma", "--checkpoint", "untuned", "a.png"]
    assert main(arguments) == 0
    assert "�[2JWide� heart.\n�txet\n\nLabels: Edema" in capsys.readouterr().out
