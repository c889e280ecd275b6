"""Writes `golden/data/rows.parquet` as Hugging Face's tools do: nested columns, nulls, several row
groups, dictionary pages, zstd. `rows.jsonl` beside it holds the same rows, null keys left out.

    python oracle/parquet_rows.py
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def without_nulls(value):
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(v) for v in value]
    return value


rows = []
for n in range(12):
    call = {"type": "function", "function": {"name": "add", "arguments": json.dumps({"a": n})}}
    turns = [{"role": "user", "content": f"What is {n} + {n}? Ünïcode 语言"}]
    if n % 3 == 0:
        turns.append({"role": "assistant", "content": None, "tool_calls": [call]})
        turns.append({"role": "tool", "content": str(2 * n)})
    turns.append({"role": "assistant", "content": f"It is {2 * n}."})
    rows.append({
        "messages": turns,
        "tools": None if n % 2 else '[{"name": "add"}]',
        "score": n / 4,
        "good": n % 2 == 0,
        "ids": list(range(n)),
    })

folder = Path(__file__).parent / "golden" / "data"
folder.mkdir(parents=True, exist_ok=True)
table = pa.Table.from_pylist(rows)
pq.write_table(table, folder / "rows.parquet", row_group_size=5, compression="zstd")
with open(folder / "rows.jsonl", "w") as file:
    for row in table.to_pylist():
        file.write(json.dumps(without_nulls(row), ensure_ascii=False) + "\n")
