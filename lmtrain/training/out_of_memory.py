"""Out of memory: fewer rows at once, the same step and the same loss; and what is left to try when one row is too many."""

from typing import Any

from lmtrain.preprocessing.batch import IGNORED, Batch

GIB = 2**30


def split_batch(batch: Batch, rows: int, fixed: bool) -> list[Batch]:
    """The batch in parts of `rows` rows, as if they had been collated so: unless `fixed`, each as long as its longest row."""
    if rows >= len(batch["labels"]):
        return [batch]
    columns = zip(*(tensor.split(rows) for tensor in batch.values()), strict=True)
    cut = [dict(zip(batch, column, strict=True)) for column in columns]
    return cut if fixed else [_trimmed(part) for part in cut]


def _trimmed(part: Batch) -> Batch:
    alike = part["labels"].shape == part["input_ids"].shape
    read = int(part["attention_mask"].sum(1).max())
    asked = (part["labels"] != IGNORED).any(0).nonzero()
    widths = {"labels": read if alike else int(asked[-1]) + 1 if len(asked) else 1}
    return {name: tensor[:, : widths.get(name, read)] for name, tensor in part.items()}


def advice(network: Any, batch: Batch, optim: str) -> str:
    """Three things to try when one row does not fit, with what each would save."""
    parameters = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    held = (4 * parameters + 12 * trained) / GIB
    length = batch["input_ids"].shape[1]
    logits = 4 * batch["labels"].shape[1] * network.config.get_text_config(decoder=True).vocab_size / GIB
    moments = (
        f"--optim adafactor: {8 * trained / GIB:.2f} GiB of AdamW's {held:.2f} GiB are not held"
        if "adamw" in optim.lower()
        else f"--precision bf16: about half of what a row of {length:,} tokens takes"
    )
    return (
        f"out of memory with a single row of {length:,} tokens. What is left to try:\n"
        f"--max-length {max(length // 2, 2)}: half the tokens; the row's logits alone take {logits:.2f} GiB\n"
        "--gradient-checkpointing: of each layer only its input is kept, for a third more time\n"
        f"{moments}"
    )
