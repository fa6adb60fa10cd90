"""Metrics do not depend on batches, padding or processes, and match an independent computation."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, lmtrain, sentences, trained
from eval_helpers import evaluated, records
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

OBJECTIVE = {"gpt2": "clm", "bert": "mlm", "t5": "seq2seq"}


@pytest.fixture(params=OBJECTIVE)
def run(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def ragged(folder: Path, objective: str) -> Path:
    """Forty rows of very different lengths."""
    lines = [" and ".join(sentences(40)[i : i + 1 + i % 5]) for i in range(40)]
    rows = [
        {"source": line, "target": line.split()[-1]} if objective == "seq2seq" else {"text": line} for line in lines
    ]
    path = folder / f"ragged-{objective}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_eval_reproduces_the_metrics_of_training(run: Path):
    at_the_end = json.loads((run / "results.json").read_text())
    again = evaluated("--model", run)
    assert again["metrics"] == at_the_end["metrics"]
    assert again["signatures"] == at_the_end["signatures"]
    assert again["intervals"] == at_the_end["intervals"]
    assert again["data"]["eval"] == at_the_end["data"]["eval"]


@pytest.mark.slow
def test_metrics_do_not_depend_on_batch_size_or_padding_side(run: Path, tmp_path: Path):
    objective = json.loads((run / "results.json").read_text())["objective"]
    data = ragged(tmp_path, objective)
    flags = ["--data", data, *(["--no-packing"] if objective != "seq2seq" else ["--max-source-length", 128])]
    left = Path(shutil.copytree(run, tmp_path / "left"))
    config = json.loads((left / "tokenizer_config.json").read_text())
    (left / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "left"}))
    first = evaluated("--model", run, *flags, "--eval-batch-size", 8, "--predictions", "first")
    texts = [[row[key] for key in ("source", "prediction")] for row in records("first")]
    for model, size in ((run, 1), (run, 3), (run, 64), (run, 8), (left, 8), (left, 3)):
        again = evaluated("--model", model, *flags, "--eval-batch-size", size, "--predictions", "again")
        assert again["metrics"] == pytest.approx(first["metrics"], rel=1e-6), size
        assert [[row[key] for key in ("source", "prediction")] for row in records("again")] == texts
    assert evaluated("--model", run, *flags)["metrics"] == first["metrics"], "repeated, to the last digit"


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(run: Path, tmp_path: Path):
    objective = json.loads((run / "results.json").read_text())["objective"]
    data = ragged(tmp_path, objective)
    command = [
        sys.executable,
        "-m",
        "lmtrain",
        "eval",
        "--model",
        str(run),
        "--data",
        f"{data}#13",
        "--json",
        "--quiet",
    ]
    done = subprocess.run(
        [*command, "--num-processes", "2", "--predictions", "two"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    one, two = evaluated("--model", run, "--data", f"{data}#13", "--predictions", "one"), json.loads(done.stdout)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert two["environment"]["processes"] == 2
    rows = [records(name) for name in ("one", "two")]
    assert [row["prediction"] for row in rows[0]] == [row["prediction"] for row in rows[1]]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data():
    lines = sentences(1500)
    Path("few.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines[:150]))
    Path("many.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    trained(
        "clm",
        "--model",
        "gpt2",
        "--from-scratch",
        "--model-config",
        TINY["gpt2"] + ",vocab_size=50257",
        "--tokenizer",
        "bpe:300",
        "--data",
        "few.jsonl",
        "--max-steps",
        1,
        "-o",
        "big",
    )
    peaks = []
    for data in ("few.jsonl", "many.jsonl"):
        command = [sys.executable, "-m", "lmtrain", "eval", "-m", "big", "-d", data, "--no-packing", "--json", "-q"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks.append(json.loads(printed)["eval"]["peak_memory_bytes"])
    assert peaks[1] < 1.05 * peaks[0]


# --- against independent computations --------------------------------------------------------------------------------


def nlls(network, ids: list[int]) -> torch.Tensor:
    """Negative log-likelihood of every token of a row but the first, in float64."""
    logits = network(torch.tensor([ids])).logits[0].double()
    return -logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]


@torch.no_grad()
@pytest.mark.parametrize("stride", [None, 8, 31])
def test_causal_loss_is_the_mean_over_all_tokens_with_and_without_stride(gpt2: Path, stride: int | None):
    text = "\n".join(sentences(30)) + "\n"
    Path("prose.txt").write_text(text)
    flags = ["--stride", stride] if stride else []
    found = evaluated("--model", gpt2, "--data", "prose.txt", "-L", 32, *flags)
    network, tokenizer = (
        AutoModelForCausalLM.from_pretrained(gpt2).double().eval(),
        AutoTokenizer.from_pretrained(gpt2),
    )
    ids = [tokenizer.bos_token_id]
    for line in text.splitlines(keepends=True):
        ids += tokenizer(line, add_special_tokens=False)["input_ids"]
    ids.append(tokenizer.eos_token_id)
    if stride is None:
        parts = [nlls(network, ids[start : start + 32]) for start in range(0, len(ids), 32)]
    else:
        parts, scored = [nlls(network, ids[:32])], 32
        for start in range(stride, len(ids), stride):
            end = min(start + 32, len(ids))
            if scored < len(ids):
                parts.append(nlls(network, ids[start:end])[-(end - scored) :])
                scored = end
    total, count = sum(part.sum().item() for part in parts), sum(map(len, parts))
    assert found["metrics"]["eval_loss"] == pytest.approx(total / count, rel=1e-6)
    assert found["metrics"]["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found["data"]["eval"]["tokens_trained"] == count
    if stride:
        assert count == len(ids) - 1
        assert found["metrics"]["bits_per_byte"] == pytest.approx(total / math.log(2) / len(text), rel=1e-5)


@torch.no_grad()
def test_seq2seq_loss_uses_the_first_reference_and_text_metrics_use_all(t5: Path):
    sources = sentences(9)
    rows = [{"source": s, "target": [" ".join(reversed(s.split())), s]} for s in sources]
    Path("several.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits = ["--max-source-length", 64, "--max-target-length", 64]
    found = evaluated("--model", t5, "--data", "several.jsonl", *limits, "--predictions", "p.jsonl", "--num-beams", 2)
    network, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(t5).double().eval(), AutoTokenizer.from_pretrained(t5)
    total, count, written = 0.0, 0, []
    for row in rows:
        ids, labels = tokenizer(row["source"])["input_ids"], tokenizer(text_target=row["target"][0])["input_ids"]
        output = network(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]))
        total, count = total + output.loss.item() * len(labels), count + len(labels)
        written.append(network.generate(torch.tensor([ids]), max_new_tokens=65, num_beams=2, do_sample=False)[0])
    assert found["metrics"]["eval_loss"] == pytest.approx(total / count, rel=1e-6)
    lines = records("p.jsonl")
    assert [line["prediction"] for line in lines] == tokenizer.batch_decode(written, skip_special_tokens=True)
    assert [line["references"] for line in lines] == [row["target"] for row in rows]
    assert "nrefs:2" in found["signatures"]["bleu"] and found["generation"]["num_beams"] == 2
    assert sum(line["nll"] for line in lines) == pytest.approx(total, rel=1e-6)


def test_rows_of_the_predictions_file_sum_to_the_metrics(run: Path):
    found = evaluated("--model", run, "--predictions", "p.jsonl", "--against", run / "predictions.jsonl")
    rows = records("p.jsonl")
    assert all({"source", "prediction", "references", "eval_loss", "nll", "tokens"} <= set(row) for row in rows)
    nll, tokens = sum(row["nll"] for row in rows), sum(row["tokens"] for row in rows)
    assert nll / tokens == pytest.approx(found["metrics"]["eval_loss"], rel=1e-12)
    assert [row["row"] for row in rows] == list(range(len(rows)))
    assert {(c["difference"], c["p_value"]) for c in found["against"].values()} == {(0.0, 1.0)}


# --- generated outputs -----------------------------------------------------------------------------------------------


def test_outputs_cut_off_at_the_limit_are_reported(t5: Path, material: Path):
    outcome = lmtrain("eval", "--model", t5, "--data", material / "pairs.jsonl#8", "--max-new-tokens", 2, "--json")
    assert outcome.json["generation"]["hit_cap"] == 1.0
    assert "100.0% of the outputs were cut off at 2 tokens" in outcome.err


def test_outputs_longer_than_the_positions_are_cut_off(material: Path):
    small = "d_model=16,encoder_layers=1,decoder_layers=1,encoder_attention_heads=2,decoder_attention_heads=2,"
    small += "encoder_ffn_dim=16,decoder_ffn_dim=16,max_position_embeddings=48"
    trained(
        "seq2seq",
        "--from-scratch",
        "--model",
        "bart",
        "--model-config",
        small,
        "--tokenizer",
        "unigram:60",
        "-d",
        material / "pairs.jsonl",
        "-o",
        "bart",
        "--max-steps",
        1,
    )
    found = evaluated("--model", "bart", "--max-new-tokens", 60, "--num-beams", 2)
    assert found["generation"]["hit_cap"] <= 1
    assert lmtrain("generate", "--model", "bart", "-p", "the dog", "--max-new-tokens", 200).code == 0


# --- out of memory ---------------------------------------------------------------------------------------------------


def test_out_of_memory_is_one_sentence(gpt2: Path, monkeypatch: pytest.MonkeyPatch):
    from lmtrain.modeling.loss import TokenLoss

    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(TokenLoss, "score", full)
    outcome = lmtrain("eval", "--model", gpt2)
    assert (
        outcome.code == 5
        and "out of memory; use a smaller --eval-batch-size" in outcome.err
        and "Traceback" not in outcome.err
    )


@pytest.mark.slow
def test_out_of_memory_in_scoring_halves_the_batch(run: Path, monkeypatch: pytest.MonkeyPatch):
    from lmtrain.modeling.loss import TokenLoss

    expected = evaluated("--model", run, "--predictions", "expected")["metrics"]
    score = TokenLoss.score

    def narrow(self, network, batch):
        if len(batch["labels"]) > 1:
            raise torch.OutOfMemoryError("no room")
        return score(self, network, batch)

    monkeypatch.setattr(TokenLoss, "score", narrow)
    assert evaluated("--model", run, "--predictions", "halved")["metrics"] == pytest.approx(expected, rel=1e-6)
    assert [row["prediction"] for row in records("halved")] == [row["prediction"] for row in records("expected")]


def test_out_of_memory_in_generation_halves_the_batch(t5: Path, monkeypatch: pytest.MonkeyPatch):
    expected = evaluated("--model", t5)["metrics"]
    generate = AutoModelForSeq2SeqLM.from_pretrained(t5).__class__.generate

    def narrow(self, input_ids, **arguments):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("no room")
        return generate(self, input_ids=input_ids, **arguments)

    monkeypatch.setattr(type(AutoModelForSeq2SeqLM.from_pretrained(t5)), "generate", narrow)
    assert evaluated("--model", t5)["metrics"] == pytest.approx(expected)
