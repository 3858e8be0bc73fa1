"""Predictions along the path of a training run: every kept checkpoint, and how far it is from its start."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from chexreason import config, models, records, runtime
from chexreason.data import curate
from chexreason.inference import predict
from chexreason.inference.protocol import Protocol
from chexreason.labels import bits


def steps(study: config.Study, run: config.Checkpoint) -> dict[int, Path | None]:
    """The checkpoints of a run by step, as folders of adapters.

    An SFT run begins with the untuned model (step 0, None).  A GRPO run begins at the first checkpoint: its step 0 is
    the adapter of the SFT run that it starts from.
    """
    kept = sorted(int(folder.name) for folder in study.paths.steps(run).iterdir())
    start: dict[int, Path | None] = {0: None} if run.stage == "sft" else {}
    return start | {step: study.paths.steps(run) / str(step) for step in kept}


def predict_path(study: config.Study, run: config.Checkpoint) -> pd.DataFrame:
    """The answers of every checkpoint of a run on the test sets of `study.path`; also written as a record.

    One row per step, data set and film: step, chosen (whether the run's `adapter` is of this step), dataset, film,
    labels (a sum of 1 for the first of the fourteen, 2 for the second, 4 for the third ...), failed, cut_off, and kl
    (nats per reply, see `kl_to_start`; NaN for the films where it is not measured).
    """
    model, where, tables = study.models[run.model], study.paths.path(run), []
    start_folder = study.paths.weights(study.start(run))
    start = predict.load(model, start_folder, study.predict.batch)
    chosen = records.sha256(study.paths.adapter(run) / models.ADAPTER[1])
    for step, folder in steps(study, run).items():
        reader = predict.load(model, folder, study.predict.batch)
        here = folder is not None and records.sha256(folder / models.ADAPTER[1]) == chosen
        for dataset in study.walk.tests:
            films, protocol = curate.dataset(study, dataset), Protocol.of(study, study.prompt(run), dataset)
            what = f"{run.name} step {step} on {dataset}"
            given = predict.reply_to_films(reader, films["image"], protocol, where.with_name(predict.JOURNAL), what)
            read = predict.read(study, dataset, films, given, reader.processor, protocol)
            read["kl"] = pd.Series(kl_to_start(reader, start, films["image"].head(study.walk.kl_films), protocol))
            tables.append(read.assign(step=step, chosen=here, labels=read["labels"].map(bits)))
    columns = ["step", "chosen", "dataset", "film", "labels", "failed", "cut_off", "kl"]
    table = pd.concat(tables, ignore_index=True)[columns]
    made_of = [study.folder / curate.MANIFEST, study.paths.adapter(run) / models.ADAPTER[1]]
    records.save(table, where, records.provenance(study, run.seed, made_of) | models.provenance(model))
    return table


def kl_to_start(
    policy: predict.Reader, start: predict.Reader, images: Sequence[str | Path], protocol: Protocol
) -> list[float]:
    """The KL divergence of `policy` from `start` on each film, in nats per reply.

    Replies are sampled from the policy at temperature 1 (with a fixed seed).  At each token the divergence over the
    whole vocabulary is computed, and summed over the reply.  The mean over replies is an unbiased estimate of the
    divergence of whole replies.
    """
    import torch
    from PIL import Image

    runtime.steady_threads()
    torch.manual_seed(zlib.crc32(protocol.hash.encode()))
    model, divergences = policy.model, []
    for first in range(0, len(images), policy.batch):
        films = [Image.open(image) for image in list(images)[first : first + policy.batch]]
        inputs = models.inputs(policy.processor, films, protocol.prompt).to(model.device)
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode():
            whole = model.generate(**inputs, max_new_tokens=protocol.max_new_tokens, **sampling)
            divergences += _token_kl(model, start.model, inputs, whole).sum(dim=1).tolist()
    return divergences


def _token_kl(model, start, inputs, whole):
    """KL(model || start) at each written token of the replies `whole` (films, tokens); 0 after a reply's end."""
    import torch

    asked = inputs["input_ids"].shape[1]
    written = whole[:, asked:]
    ends = torch.isin(written, torch.tensor(model.generation_config.eos_token_id, device=written.device))
    mask = (ends.cumsum(dim=1) - ends.long() == 0).long()  # up to and with the first token that ends a reply
    given = dict(inputs) | {"input_ids": whole, "attention_mask": torch.cat([inputs["attention_mask"], mask], dim=1)}
    for name in {"token_type_ids", "mm_token_type_ids"} & {*inputs}:
        given[name] = torch.cat([inputs[name], inputs[name].new_zeros(written.shape)], dim=1)
    here, there = (
        each(**given, logits_to_keep=written.shape[1] + 1).logits[:, :-1].float().log_softmax(dim=-1)
        for each in (model, start)
    )
    return (here.exp() * (here - there)).sum(dim=-1) * mask
