"""Parquet columns that are much larger than they look: a file holds a text that many rows share only once.

Such columns are read as what they are in the file, a dictionary and an index for every value, and become texts in
pieces of bounded size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

#: A column is dense if one row may hold more bytes of it, and the file says for no more bytes which text each value is.
_ROW_BYTES = 4 << 10
_INDEX_BYTES = 8


def dense_columns(file: pq.ParquetFile, group: int) -> dict[str, int]:
    """The columns of a row group that may be far larger than they look: path, and bytes that the file has for them.

    None in a file with views of texts or lists, which Arrow cannot take pieces of.
    """
    metadata = file.metadata.row_group(group)
    columns = (metadata.column(number) for number in range(metadata.num_columns))
    dense = {column.path_in_schema: column.total_uncompressed_size for column in columns if _is_dense(column, metadata)}
    return {} if dense and any(map(_has_view, file.schema_arrow.types)) else dense


def _has_view(kind: pa.DataType) -> bool:
    t = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _has_view(kind.storage_type)
    if t.is_string_view(kind) or t.is_binary_view(kind) or t.is_list_view(kind) or t.is_large_list_view(kind):
        return True
    return any(_has_view(kind.field(number).type) for number in range(kind.num_fields))


def _is_dense(column: pq.ColumnChunkMetaData, group: pq.RowGroupMetaData) -> bool:
    if column.physical_type != "BYTE_ARRAY" or not column.has_dictionary_page:
        return False
    # Where a dictionary became too large, texts follow it: these are not dense.
    indices = column.total_compressed_size - (column.data_page_offset - column.dictionary_page_offset)
    texts = column.total_uncompressed_size - indices
    return bool(
        indices <= _INDEX_BYTES * column.num_values + 1024
        and texts * column.num_values > _ROW_BYTES * max(1, group.num_rows)
    )


def dense_bytes(file: pq.ParquetFile, group: int, columns: list[str]) -> int:
    """Bytes that dense columns of a row group have once every value is a text."""
    table = file.read_row_group(group, columns=columns, use_threads=False)
    return sum(decoded_bytes(chunk) for column in table.columns for chunk in column.chunks)


def decoded_bytes(array: pa.Array) -> int:
    """Bytes of an array once every value of a dictionary in it stands for itself."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        value = kind.value_type
        if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_binary(value)):
            return int(array.nbytes)
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return int(pc.sum(lengths).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(map(decoded_bytes, array.flatten()))
    if pa.types.is_map(kind):  # no slice here: neither pieces nor what a file gives begins in the middle
        return decoded_bytes(array.keys) + decoded_bytes(array.items)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return decoded_bytes(array.flatten())
    return int(array.nbytes)


def pieces(batch: pa.RecordBatch, rows: int, size: int) -> Iterator[pa.RecordBatch]:
    """A batch in pieces of at most ``rows`` rows and ``size`` decoded bytes, but one row at least."""
    # By take: a slice of lists keeps all their values, and all would become texts.
    open_ranges = [(0, len(batch))]
    while open_ranges:
        begin, end = open_ranges.pop()
        piece = batch.take(pa.array(np.arange(begin, end)))
        if end - begin > 1 and (end - begin > rows or sum(map(decoded_bytes, piece.columns)) > size):
            middle = (begin + end) // 2
            open_ranges += [(middle, end), (begin, middle)]
        elif end > begin:
            yield piece
