"""Train a causal language model on a text file as transformers' run_clm.py does: the baseline of benchmarks.start.

python benchmarks/plain.py MODEL FILE FOLDER
"""

import sys
from itertools import chain
from typing import Any

LENGTH = 256


def two_maps(raw: Any, tokenizer: Any, length: int) -> tuple[Any, Any]:
    """(the tokenized lines of the data set `raw`, the same concatenated into rows of `length` without the remainder)."""
    ids = raw.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["text"])

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(chain(*column)) for name, column in rows.items()}
        total = len(joined["input_ids"]) // length * length
        cut = {name: [column[i : i + length] for i in range(0, total, length)] for name, column in joined.items()}
        return {**cut, "labels": cut["input_ids"].copy()}

    return ids, ids.map(group, batched=True)


def main(model: str, file: str, folder: str) -> None:
    from datasets import load_dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model)
    _, rows = two_maps(load_dataset("text", data_files=file, split="train"), tokenizer, LENGTH)
    arguments = TrainingArguments(
        folder, max_steps=1, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    Trainer(network, arguments, data_collator=collator, train_dataset=rows).train()


if __name__ == "__main__":
    main(*sys.argv[1:])
