"""Tasks of a registry, each with its data set beside it."""

import json

import datasets


def write(folder, rows, parquet=False, **fields):
    """A task of the registry with its data set beside it."""
    data = folder / "data"
    data.mkdir(parents=True)
    if parquet:
        datasets.Dataset.from_list(rows).to_parquet(str(data / "train.parquet"))
    else:
        (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = {
        "ds_kwargs": {"path": "data", "split": "train"},
        "user_prompt_template": "{question}",
        "response_field": "answer",
        "descriptions": [f"Wording {n}." for n in range(130)],
        "assistant_prefill": "",
        "system_message": "",
    }
    path = folder / "metadata.yaml"
    path.write_text(json.dumps({**whole, **fields}))
    return path


def rows_of(*questions):
    return [{"question": text, "answer": text.upper()} for text in questions]
