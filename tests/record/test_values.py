"""What is read from a table: every column in its dtype, and no row that a run cannot write."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from precision_lab.errors import InputError
from precision_lab.record.tables import LEADING, merged_path, read, write_part

ROWS = 4


def sound(table):
    """A table with plain values in all leading columns."""
    values = {
        column.name: {"string": "x", "Int64": 1, "float64": 0.5, "boolean": True}[column.dtype]
        for column in LEADING[table]
    }
    values |= {"mode": "free"} if table == "drift" else {}
    frame = pd.DataFrame([values] * ROWS).assign(order=range(ROWS))
    return frame.assign(round=range(ROWS)) if table == "latency" else frame.assign(amax=1.0, num_nan=0.0)


def written(folder, table, frame):
    write_part(folder, table, "a", sound(table))
    (part,) = (folder / table).iterdir()
    part.rename(merged_path(folder, table))
    kept = pd.read_parquet(merged_path(folder, table))
    if frame is not None:
        frame(kept).to_parquet(merged_path(folder, table))
    return merged_path(folder, table)


@pytest.mark.parametrize("table", LEADING)
def test_a_sound_table_is_read_as_it_is(tmp_path, table):
    written(tmp_path, table, None)
    found = read(tmp_path, table)
    assert len(found) == ROWS
    assert {name: str(found[name].dtype) for name in found} | {c.name: c.dtype for c in LEADING[table]} == {
        name: str(found[name].dtype) for name in found
    }


def changed(column, row, value):
    def change(frame):
        values = frame[column].astype(object)
        values.iloc[row] = value
        return frame.assign(**{column: values.infer_objects()})

    return change


@pytest.mark.parametrize(
    ("table", "column", "value", "said"),
    [
        ("activations", "step", -1, "holds '-1' in row 2 of column 'step', expected a count from 0"),
        ("activations", "step", 10**9, "expected a count from 0"),
        ("activations", "seed", -3, "expected a number of at least 0"),
        ("activations", "seed", 0.5, "expected an integer"),
        ("activations", "block", np.inf, "expected an integer"),
        ("activations", "variant", None, "holds 'nothing' in row 2 of column 'variant', expected a value"),
        ("activations", "site", None, "expected a value"),
        ("activations", "amax", -1.0, "expected a number of at least 0"),
        ("activations", "num_nan", -1.0, "expected a number of at least 0"),
        ("drift", "mode", "other", "expected one of free, teacher"),
        ("drift", "port", None, "expected a value"),
        ("latency", "seconds", 0.0, "expected a time above 0"),
        ("latency", "seconds", np.inf, "expected a time above 0"),
        ("latency", "round", 1, "expected one sample of a variant in each round"),
    ],
)
def test_a_wrong_value_is_named_with_its_row(tmp_path, table, column, value, said):
    file = written(tmp_path, table, changed(column, 2, value))
    with pytest.raises(InputError) as caught:
        read(tmp_path, table)
    assert str(caught.value).startswith(str(file))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("step", ["1"] * ROWS, "in column 'step', expected numbers"),
        ("amax", ["x"] * ROWS, "in column 'amax', expected numbers"),
        ("step", [True] * ROWS, "in column 'step', expected numbers"),
        ("site", [3] * ROWS, "in column 'site', expected text"),
        ("site", [b"\xff"] * ROWS, "in column 'site', expected text"),
        ("site", [["a"]] * ROWS, "in column 'site', expected text"),
        ("own", [pd.Timestamp("2026-01-01")] * ROWS, "in column 'own', expected text or numbers"),
    ],
)
def test_a_column_of_another_dtype_is_named(tmp_path, column, values, said):
    written(tmp_path, "activations", lambda frame: frame.assign(**{column: values}))
    with pytest.raises(InputError, match=said):
        read(tmp_path, "activations")


def test_damaged_bytes_are_found_by_their_checksum(tmp_path):
    """A flipped bit of a number leads to another number, and to no error of the format."""
    file = written(tmp_path, "activations", None)
    whole = file.read_bytes()
    column = pq.ParquetFile(file).metadata.row_group(0).column(list(pd.read_parquet(file)).index("amax"))
    start = column.dictionary_page_offset or column.data_page_offset
    for offset in range(start + column.total_compressed_size - 4, start + column.total_compressed_size):
        broken = bytearray(whole)
        broken[offset] ^= 1
        file.write_bytes(broken)
        with pytest.raises(InputError, match="is not a table that can be read"):
            read(tmp_path, "activations")


def test_text_that_is_not_utf8_is_found_when_it_is_read(tmp_path):
    file = written(tmp_path, "activations", None)
    table = pq.read_table(file)
    at = table.schema.get_field_index("site")
    broken = pa.array([b"\xff\xfe"] * ROWS, pa.binary()).view(pa.utf8())
    pq.write_table(table.set_column(at, "site", broken), file)
    with pytest.raises(InputError, match="holds in column 'site' what is not UTF-8 text"):
        read(tmp_path, "activations")
