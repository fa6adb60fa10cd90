"""`lmtrain eval`: the same figures however they are taken, and those that an independent computation gives."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, lmtrain, scratch, sentences, trained
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

OBJECTIVE = {"gpt2": "clm", "bert": "mlm", "t5": "seq2seq"}


@pytest.fixture(params=OBJECTIVE)
def run(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def evaluated(*arguments) -> dict:
    outcome = lmtrain("eval", *arguments, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    return outcome.json


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def ragged(folder: Path, objective: str) -> Path:
    """Forty rows of very different lengths."""
    lines = [" and ".join(sentences(40)[i : i + 1 + i % 5]) for i in range(40)]
    rows = [
        {"source": line, "target": line.split()[-1]} if objective == "seq2seq" else {"text": line} for line in lines
    ]
    path = folder / f"ragged-{objective}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- the same figures, however they are taken -------------------------------------------------------------------------


def test_the_run_folder_gives_the_figures_that_training_ended_with(run: Path):
    at_the_end = json.loads((run / "results.json").read_text())
    again = evaluated("--model", run)
    assert again["metrics"] == at_the_end["metrics"]
    assert again["signatures"] == at_the_end["signatures"]
    assert again["intervals"] == at_the_end["intervals"]
    assert again["data"]["eval"] == at_the_end["data"]["eval"]


def test_batches_padding_and_repetition_change_no_figure(run: Path, tmp_path: Path):
    objective = json.loads((run / "results.json").read_text())["objective"]
    data = ragged(tmp_path, objective)
    flags = ["--data", data, *(["--no-packing"] if objective != "seq2seq" else ["--max-source-length", 128])]
    left = Path(shutil.copytree(run, tmp_path / "left"))
    config = json.loads((left / "tokenizer_config.json").read_text())
    (left / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "left"}))
    first = evaluated("--model", run, *flags, "--eval-batch-size", 8, "--predictions", "first")
    texts = [[row[key] for key in ("source", "prediction")] for row in rows_of("first")]
    for model, size in ((run, 1), (run, 3), (run, 64), (run, 8), (left, 8), (left, 3)):
        again = evaluated("--model", model, *flags, "--eval-batch-size", size, "--predictions", "again")
        assert again["metrics"] == pytest.approx(first["metrics"], rel=1e-6), size
        assert [[row[key] for key in ("source", "prediction")] for row in rows_of("again")] == texts
    assert evaluated("--model", run, *flags)["metrics"] == first["metrics"], "repeated, to the last digit"


def test_two_processes_find_what_one_finds(run: Path, tmp_path: Path):
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
    rows = [rows_of(name) for name in ("one", "two")]
    assert [row["prediction"] for row in rows[0]] == [row["prediction"] for row in rows[1]]


def test_memory_does_not_grow_with_the_data():
    lines = sentences(5000)
    Path("few.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines[:500]))
    Path("many.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    trained("clm", "--model", "gpt2", "--from-scratch", "--model-config", TINY["gpt2"] + ",vocab_size=50257",
            "--tokenizer", "bpe:300", "--data", "few.jsonl", "--max-steps", 1, "-o", "big")  # fmt: skip
    peaks = []
    for data in ("few.jsonl", "many.jsonl"):
        command = [sys.executable, "-m", "lmtrain", "eval", "-m", "big", "-d", data, "--no-packing", "--json", "-q"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks.append(json.loads(printed)["eval"]["peak_memory_bytes"])
    assert peaks[1] < 1.05 * peaks[0]


# --- against independent computations ---------------------------------------------------------------------------------


def nlls(network, ids: list[int]) -> torch.Tensor:
    """Negative log-likelihood of every token of a row but the first, in float64."""
    logits = network(torch.tensor([ids])).logits[0].double()
    return -logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]


@torch.no_grad()
@pytest.mark.parametrize("stride", [None, 8, 31])
def test_causal_loss_is_the_mean_over_all_tokens_windowed_or_not(gpt2: Path, stride: int | None):
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
def test_pseudo_perplexity_masks_each_token_in_turn(bert: Path):
    lines = sentences(7)
    Path("few.txt").write_text("\n".join(lines) + "\n")
    found = evaluated(
        "--model", bert, "--data", "few.txt", "--no-packing", "--pseudo-perplexity", "--eval-batch-size", 3
    )
    network, tokenizer = (
        AutoModelForMaskedLM.from_pretrained(bert).double().eval(),
        AutoTokenizer.from_pretrained(bert),
    )
    total, count = 0.0, 0
    for line in lines:
        ids = tokenizer(line)["input_ids"]
        for at in range(1, len(ids) - 1):
            masked = torch.tensor([[*ids[:at], tokenizer.mask_token_id, *ids[at + 1 :]]])
            total -= network(masked).logits[0, at].log_softmax(-1)[ids[at]].item()
            count += 1
    assert found["metrics"]["pseudo_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert "pseudo_perplexity" not in evaluated("--model", bert, "--data", "few.txt", "--no-packing")["metrics"]


@torch.no_grad()
def test_seq2seq_is_scored_on_the_first_reference_and_its_text_on_all(t5: Path):
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
    lines = rows_of("p.jsonl")
    assert [line["prediction"] for line in lines] == tokenizer.batch_decode(written, skip_special_tokens=True)
    assert [line["references"] for line in lines] == [row["target"] for row in rows]
    assert "nrefs:2" in found["signatures"]["bleu"] and found["generation"]["num_beams"] == 2
    assert sum(line["nll"] for line in lines) == pytest.approx(total, rel=1e-6)


def test_outputs_that_are_cut_off_are_said(t5: Path, material: Path):
    outcome = lmtrain("eval", "--model", t5, "--data", material / "pairs.jsonl#8", "--max-new-tokens", 2, "--json")
    assert outcome.json["generation"]["hit_cap"] == 1.0
    assert "100.0% of the outputs were cut off at 2 tokens" in outcome.err


# --- what else it does ------------------------------------------------------------------------------------------------


def test_predictions_say_of_every_row_what_it_adds(run: Path):
    found = evaluated("--model", run, "--predictions", "p.jsonl", "--against", run / "predictions.jsonl")
    rows = rows_of("p.jsonl")
    assert all({"source", "prediction", "references", "eval_loss", "nll", "tokens"} <= set(row) for row in rows)
    nll, tokens = sum(row["nll"] for row in rows), sum(row["tokens"] for row in rows)
    assert nll / tokens == pytest.approx(found["metrics"]["eval_loss"], rel=1e-12)
    assert [row["row"] for row in rows] == list(range(len(rows)))
    assert {(c["difference"], c["p_value"]) for c in found["against"].values()} == {(0.0, 1.0)}


def test_a_better_model_is_significantly_better(t5: Path, material: Path):
    data = material / "pairs.jsonl"
    trained("seq2seq", *scratch("t5"), "--data", data, "-o", "better", "--max-steps", 80, "--lr", 1e-2)
    flags = ["--data", data, "--max-source-length", 64, "--max-target-length", 64]
    evaluated("--model", t5, *flags, "--predictions", "worse.jsonl")
    against = evaluated("--model", "better", *flags, "--against", "worse.jsonl")["against"]
    for name in ("eval_loss", "chrf", "rouge1"):
        low, high = against[name]["interval"]
        assert low <= against[name]["difference"] <= high and against[name]["p_value"] < 0.05
        assert high < 0 if name == "eval_loss" else low > 0
    rows = Path("worse.jsonl").read_text().splitlines()
    Path("worse.jsonl").write_text("\n".join(reversed(rows)) + "\n")
    outcome = lmtrain("eval", "--model", "better", *flags, "--against", "worse.jsonl")
    assert outcome.code == 3 and "worse.jsonl, line 1: another row than here" in outcome.err


ACCURACY = '''"""The share of exact answers."""
import datasets
import evaluate


class Share(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"share": sum(map(str.__eq__, predictions, references)) / len(references), "rows": len(references)}
'''


def test_a_metric_of_ones_own_is_loaded_from_its_file(t5: Path, material: Path):
    Path("share.py").write_text(ACCURACY)
    flags = ["--model", t5, "--data", material / "pairs.jsonl"]
    found = evaluated(*flags, "--metric", "share.py", "--metric", "chrf", "--assert", "share<=1")
    assert found["metrics"]["rows"] == 60 and found["metrics"]["share"] == 0
    assert set(found["metrics"]) == {"eval_loss", "perplexity", "token_accuracy", "chrf", "share", "rows"}
    assert found["signatures"]["share"] == "evaluate:share.py"
    outcome = lmtrain("eval", *flags, "--metric", "blue")
    assert outcome.code == 2 and "did you mean 'bleu'?" in outcome.err
    outcome = lmtrain("seq2seq", *scratch("t5"), "--data", material / "pairs.jsonl", "--metric", "blue", "-o", "never")
    assert outcome.code == 2 and not Path("never").exists(), "a misspelt metric is found before training"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # what peft asks of transformers
def test_an_adapter_is_scored_with_its_base(gpt2: Path, material: Path):
    from peft import LoraConfig, get_peft_model

    network = AutoModelForCausalLM.from_pretrained(gpt2)
    torch.manual_seed(0)
    adapted = get_peft_model(
        network, LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    )
    adapted.save_pretrained("adapter")
    data = material / "text.jsonl"
    outcome = lmtrain("eval", "--model", "adapter", "--data", data, "--json")
    assert outcome.code == 0, outcome.err
    assert f"the adapter adapter is merged into {gpt2}" in outcome.err
    AutoTokenizer.from_pretrained(gpt2).save_pretrained("merged")
    adapted.merge_and_unload().save_pretrained("merged")
    merged = evaluated("--model", "merged", "--data", data)["metrics"]
    assert outcome.json["metrics"] == pytest.approx(merged, rel=1e-6)
    assert merged["eval_loss"] != pytest.approx(
        evaluated("--model", gpt2, "--data", data)["metrics"]["eval_loss"], rel=1e-5
    )
    (Path("adapter") / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in lmtrain("eval", "--model", "adapter", "--data", data).err


def test_everything_works_without_a_network(t5: Path, bert: Path, gpt2: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    Path("share.py").write_text(ACCURACY)
    korean = [{"source": "hello", "target": "안녕하세요 여러분"}, {"source": "the dog", "target": "그 개는 아주 크다"}]
    Path("ko.jsonl").write_text("".join(json.dumps(row) + "\n" for row in korean))
    evaluated("--model", t5, "--data", "ko.jsonl", "--metric", "share.py")
    evaluated("--model", t5, "--data", "ko.jsonl", "--num-beams", 2)
    evaluated("--model", bert, "--pseudo-perplexity")
    evaluated("--model", gpt2, "--stride", 16, "-L", 32)
    for model, prompt in ((gpt2, "the"), (bert, "the [MASK]"), (t5, "the dog")):
        assert lmtrain("generate", "--model", model, "--prompt", prompt).code == 0


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--data", "text"], 2, "--model is missing"),
        (["--model", "gpt2!"], 3, "no such folder"),
        (["--model", "RUN", "--objective", "cml"], 2, "clm, mlm or seq2seq"),
        (["--model", "RUN", "--objective", "mlm", "--data", "x.jsonl"], 3, "use lmtrain clm"),
        (["--model", "RUN", "--num-beams", "3"], 2, "--num-beams: not an option of clm"),
        (["--model", "RUN", "--stride", "128"], 2, "--stride 128: has to be less than --max-length 128"),
        (["--model", "RUN", "--against", "nothing.jsonl"], 3, "nothing.jsonl: No such file"),
        (["--model", "RUN", "--predictions", "no/where"], 2, "no such folder"),
        (["--model", "RUN", "--bleu-tokenize", "13a"], 2, "not an option of clm"),
        (["--model", "MODEL"], 2, "--data is missing"),
    ],
)
def test_mistakes_are_one_sentence(flags: list[str], code: int, message: str, gpt2: Path, tmp_path: Path):
    model = Path(shutil.copytree(gpt2, tmp_path / "model"))
    (model / "recipe.yaml").unlink()
    Path("x.jsonl").write_text('{"text": "a"}\n')
    outcome = lmtrain("eval", *({"RUN": str(gpt2), "MODEL": str(model)}.get(flag, flag) for flag in flags))
    assert outcome.code == code, outcome.err
    assert message in outcome.err and "Traceback" not in outcome.err


def test_a_model_that_is_no_run_is_scored_on_what_is_named(gpt2: Path, material: Path, tmp_path: Path):
    model = Path(shutil.copytree(gpt2, tmp_path / "model"))
    (model / "recipe.yaml").unlink()
    data = material / "text.jsonl"
    assert evaluated("-m", model, "-d", data)["metrics"] == evaluated("-m", gpt2, "--eval-data", data)["metrics"]


def test_its_mistakes_do_not_wait_for_torch():
    script = "import sys; from lmtrain.cli.app import app\n"
    script += "sys.argv = ['lmtrain', 'eval', '--model', 'x', '--assert', 'a', '--data', 'd']\n"
    script += "try: main()\nexcept SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=True
    )
    assert printed.stdout.split() == ["2", "False"]


# --- what a run folder must not do, and what must not go unseen -------------------------------------------------------


def test_a_run_folder_does_not_bring_code_to_run(t5: Path, tmp_path: Path):
    run = Path(shutil.copytree(t5, tmp_path / "run"))
    Path("evil.py").write_text("import pathlib\npathlib.Path('canary').write_text('x')\n" + ACCURACY)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("  metric: []", "  metric: [evil.py, chrf]"))
    assert "evil.py" in (run / "recipe.yaml").read_text()
    assert set(evaluated("--model", run)["metrics"]) == {"eval_loss", "perplexity", "token_accuracy", "chrf"}
    assert not Path("canary").exists()


def test_a_completed_run_is_judged_again(material: Path):
    run = [
        "clm",
        *scratch("gpt2"),
        "-d",
        material / "text.jsonl",
        "-o",
        "run",
        "--max-steps",
        2,
        "--resume",
        "auto",
        "-q",
    ]
    assert lmtrain(*run, "--json").code == 0
    again = lmtrain(*run, "--json", "--assert", "perplexity<1")
    assert again.code == 4 and again.json["gates"][0]["holds"] is False


def test_another_seed_would_score_rows_that_were_trained(gpt2: Path):
    outcome = lmtrain("eval", "--model", gpt2, "--seed", 7)
    assert outcome.code == 2 and "name some with --data" in outcome.err
    assert lmtrain("eval", "--model", gpt2, "--seed", 42).code == 0


def test_out_of_memory_is_one_sentence(gpt2: Path, monkeypatch: pytest.MonkeyPatch):
    from lmtrain.modeling.loss import TokenLoss

    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(TokenLoss, "score", full)
    outcome = lmtrain("eval", "--model", gpt2)
    assert outcome.code == 5 and "smaller batches (--eval-batch-size" in outcome.err and "Traceback" not in outcome.err


def test_out_of_memory_in_scoring_takes_fewer_rows_at_once(run: Path, monkeypatch: pytest.MonkeyPatch):
    from lmtrain.modeling.loss import TokenLoss

    expected = evaluated("--model", run, "--predictions", "expected")["metrics"]
    score = TokenLoss.score

    def narrow(self, network, batch):
        if len(batch["labels"]) > 1:
            raise torch.OutOfMemoryError("no room")
        return score(self, network, batch)

    monkeypatch.setattr(TokenLoss, "score", narrow)
    assert evaluated("--model", run, "--predictions", "halved")["metrics"] == pytest.approx(expected, rel=1e-6)
    assert [row["prediction"] for row in rows_of("halved")] == [row["prediction"] for row in rows_of("expected")]


def test_out_of_memory_in_generation_takes_fewer_rows_at_once(t5: Path, monkeypatch: pytest.MonkeyPatch):
    expected = evaluated("--model", t5)["metrics"]
    generate = AutoModelForSeq2SeqLM.from_pretrained(t5).__class__.generate

    def narrow(self, input_ids, **arguments):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("no room")
        return generate(self, input_ids=input_ids, **arguments)

    monkeypatch.setattr(type(AutoModelForSeq2SeqLM.from_pretrained(t5)), "generate", narrow)
    assert evaluated("--model", t5)["metrics"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("t5", ["--metric", "rouge1", "--assert", "bleu>0"], "no figure 'bleu'"),
        ("bert", ["--assert", "pseudo_perplexity<9"], "no figure 'pseudo_perplexity'"),
    ],
)
def test_a_figure_that_will_not_be_made_is_no_gate(
    model: str, flags: list[str], message: str, request: pytest.FixtureRequest
):
    outcome = lmtrain("eval", "--model", request.getfixturevalue(model), *flags)
    assert outcome.code == 2 and message in outcome.err


def test_the_best_metric_has_to_be_one_that_is_made(material: Path):
    flags = ["-o", "run", "--max-steps", 1]
    for command in (
        ["seq2seq", *scratch("t5"), "-d", material / "pairs.jsonl", "--metric", "rouge1", "--best-metric", "bleu"],
        ["mlm", *scratch("bert"), "-d", material / "text.jsonl", "--best-metric", "pseudo_perplexity"],
        ["clm", *scratch("gpt2"), "-d", material / "chats.jsonl", "--best-metric", "bits_per_byte"],
    ):
        outcome = lmtrain(*command, *flags)
        assert outcome.code == 2 and "--best-metric" in outcome.err and not Path("run").exists()


def test_outputs_end_where_the_positions_do(material: Path):
    small = "d_model=16,encoder_layers=1,decoder_layers=1,encoder_attention_heads=2,decoder_attention_heads=2,"
    small += "encoder_ffn_dim=16,decoder_ffn_dim=16,max_position_embeddings=48"
    trained("seq2seq", "--from-scratch", "--model", "bart", "--model-config", small, "--tokenizer", "unigram:60",
            "-d", material / "pairs.jsonl", "-o", "bart", "--max-steps", 1)  # fmt: skip
    found = evaluated("--model", "bart", "--max-new-tokens", 60, "--num-beams", 2)
    assert found["generation"]["hit_cap"] <= 1
    assert lmtrain("generate", "--model", "bart", "-p", "the dog", "--max-new-tokens", 200).code == 0


def test_a_number_that_is_none_is_null_in_json(t5: Path):
    Path("odd.py").write_text(ACCURACY.replace("sum(map(str.__eq__, predictions, references))", "float('nan')"))
    outcome = lmtrain("eval", "--model", t5, "--metric", "odd.py", "--metric", "chrf", "--json", "-q")
    assert outcome.code == 0 and "NaN" not in outcome.out and outcome.json["metrics"]["share"] is None


def test_an_adapter_that_does_not_fit_or_has_no_base_is_refused(gpt2: Path, tmp_path: Path):
    Path("ad").mkdir()
    for base, message in (("/nonexist/base", "no such folder"), (str(Path("ad").resolve()), "adapter of another adapter"),
                          ("org/base", "offline there is no such model")):  # fmt: skip
        Path("ad/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        outcome = lmtrain("eval", "--model", "ad", "--data", "x.jsonl")
        assert outcome.code == 3 and message in outcome.err, outcome.err
