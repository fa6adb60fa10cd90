"""Out of memory: a step continues with fewer rows at once and the same loss; advice if one row does not fit."""

from transformers import PreTrainedModel

from lmtrain.preprocessing.batch import IGNORED, Batch

GIB = 2**30


def split_batch(batch: Batch, rows: int, fixed: bool) -> list[Batch]:
    """The batch in parts of `rows` rows. Unless lengths are `fixed`, each is trimmed to its longest row."""
    if rows >= len(batch["labels"]):
        return [batch]
    columns = zip(*(tensor.split(rows) for tensor in batch.values()), strict=True)
    cut = [dict(zip(batch, column, strict=True)) for column in columns]
    return cut if fixed else [_trimmed(part) for part in cut]


def _trimmed(part: Batch) -> Batch:
    alike = part["labels"].shape == part["input_ids"].shape
    read = int(part["attention_mask"].sum(1).max())
    supervised = (part["labels"] != IGNORED).any(0).nonzero()
    widths = {"labels": read if alike else int(supervised[-1]) + 1 if len(supervised) else 1}
    return {name: tensor[:, : widths.get(name, read)] for name, tensor in part.items()}


def advice(network: PreTrainedModel, batch: Batch, optim: str) -> str:
    """The three options that are left when one row does not fit, with the memory that each saves."""
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
        f"out of memory with a single row of {length:,} tokens. Options left:\n"
        f"--max-length {max(length // 2, 2)}: half the tokens; the row's logits alone take {logits:.2f} GiB\n"
        "--gradient-checkpointing: stores only the input of each layer; a step takes a third longer\n"
        f"{moments}"
    )
