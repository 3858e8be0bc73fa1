"""The paper's four findings in a study.

A finding is tested by comparing two checkpoints on the same films: the difference in macro-F1, second minus first. Each
comparison has the result that the finding predicts, and a verdict:

- `agrees`: the paired 95 % interval excludes zero, on the predicted side;
- `contradicts`: it excludes zero, on the other side;
- `inconclusive`: it includes zero. "Two rewards end level" can never agree: no interval shows this.
"""

import pandas as pd

from chexreason import config, records
from chexreason.config import Checkpoint
from chexreason.display.tables import estimate_text, title_text
from chexreason.evaluation import compare, metrics, report
from chexreason.paper import published

VERDICTS = ("agrees", "contradicts", "inconclusive")

_GRPO = {"shared9": "gain", "nih9": "loss"}
"""What finding 1 expects of GRPO on a test set with the labels of training, and on one with NIH's."""

_SCAFFOLD = {"medgemma": "no gain", "qwen": "gain"}
"""What finding 3 expects of Reasoning A over Free Reasoning, by the model's key in the params file."""


def paper() -> dict[int, str]:
    """The paper's four findings in words, with its printed values."""
    home, away = published.printed_macro("CheXpert"), published.printed_macro("NIH")
    medgemma, qwen = (published.validation(number).set_index("variant")["macro_f1"] for number in (2, 3))
    best = published.validation(4).query("checkpoint == 'Best F1-Score'").set_index("reward")["macro_f1"]
    untuned, sft, grpo = "MedGemma-4B", "MedGemma-4B SFT", "ChexReason"
    return {
        1: f"GRPO lifts macro-F1 on CheXpert from {home[sft]:.3f} to {home[grpo]:.3f} and lowers it on NIH "
        f"from {away[sft]:.3f} to {away[grpo]:.3f}.",
        2: f"SFT alone lifts macro-F1 on NIH from {away[untuned]:.3f} to {away[sft]:.3f}.",
        3: "Structure helps the general-purpose model and not the medical one: Reasoning A against Free Reasoning has "
        f"{qwen['Reasoning A']:.3f} against {qwen['Free Reasoning']:.3f} on Qwen, "
        f"{medgemma['Reasoning A']:.3f} against {medgemma['Free Reasoning']:.3f} on MedGemma.",
        4: f"Hard and nuanced reward end level, at {best['Hard']:.3f} and {best['Nuanced']:.3f}.",
    }


def comparisons(study: config.Study, paired: pd.DataFrame) -> pd.DataFrame:
    """All comparisons of the study for the findings; empty if nothing was trained.

    `paired` is the record of that name, with the steps of training. Formats and rewards are compared here on validation
    films, from the records of answers, with the same resamples. Columns: finding, expected, those of `paired`, result
    (`metrics.verdict`) and verdict (one of `VERDICTS`).
    """
    steps = report.gains(paired)
    steps = steps[steps["dataset"].isin(study.tests)]
    grpo, sft = (steps[steps["second"].str.contains(f"/{stage}/")] for stage in ("grpo", "sft"))
    tables = [
        grpo.assign(finding=1, expected=grpo["label_set"].map(_GRPO)),
        sft[sft["label_set"] == "nih9"].assign(finding=2, expected="gain"),
        *_formats(study),
        *_rewards(study),
    ]
    columns = ["finding", "expected", *paired.columns]
    table = pd.concat([one.reindex(columns=columns) for one in tables], ignore_index=True)
    result = [metrics.verdict(*bounds) for bounds in table[["low", "high"]].to_numpy()]
    told = [_verdict(*pair) for pair in zip(table["expected"], result, strict=True)]
    return table.assign(result=pd.Series(result, dtype="str"), verdict=pd.Series(told, dtype="str"))


def _formats(study: config.Study) -> list[pd.DataFrame]:
    """Reasoning A compared with Free Reasoning, for each model and seed that has both."""
    return [
        _between(study, *pair).assign(finding=3, expected=_SCAFFOLD[pair[0].model]) for pair in _format_pairs(study)
    ]


def _format_pairs(study: config.Study) -> list[tuple[Checkpoint, Checkpoint]]:
    """The first run of each format with the settings of the section, for each model of the paper and each seed."""
    trained: dict[tuple, Checkpoint] = {}
    for each in study.runs("sft"):
        if not study.sft.runs[each.run].set:
            trained.setdefault((each.model, each.seed, study.prompt(each)), each)
    return [
        (first, each)
        for (model, seed, form), each in trained.items()
        if form == "reasoning_a" and model in _SCAFFOLD and (first := trained.get((model, seed, "free_reasoning")))
    ]


def _rewards(study: config.Study) -> list[pd.DataFrame]:
    """The hard compared with the nuanced reward, at the last and the best checkpoint."""
    return [
        _between(study, *ends).assign(finding=4, expected="level")
        for nuanced, hard in _reward_pairs(study)
        for ends in ((nuanced, hard), (nuanced.best, hard.best))
    ]


def _reward_pairs(study: config.Study) -> list[tuple[Checkpoint, Checkpoint]]:
    """The GRPO runs of the nuanced and of the hard reward that differ only in the reward."""
    runs = study.grpo.runs

    def rest(checkpoint: Checkpoint) -> tuple:
        run = runs[checkpoint.run]
        return checkpoint.seed, run.start, run.films, run.labels, study.grpo.of(checkpoint.run)

    both = {
        reward: [each for each in study.runs("grpo") if runs[each.run].reward == reward]
        for reward in ("nuanced", "hard")
    }
    return [(first, second) for second in both["hard"] for first in both["nuanced"] if rest(first) == rest(second)]


def _has_comparison(study: config.Study) -> dict[int, bool]:
    """Whether the runs of a study have a comparison for each finding."""
    pairs = {1: study.grpo.runs, 2: study.sft.runs, 3: _format_pairs(study), 4: _reward_pairs(study)}
    return {finding: bool(found) for finding, found in pairs.items()}


def _between(study: config.Study, first: Checkpoint, second: Checkpoint) -> pd.DataFrame:
    """A row like those of the `paired` record: two checkpoints on validation films, over all labels."""
    films, label_set = compare.labeled_films(study), study.curate.label_sets[0]
    before, after = (
        compare.score_answers(study, films, records.load(study.paths.answers(each)), study.validation, label_set)
        for each in (first, second)
    )
    names = {name: compare.model_name(study, each) for name, each in (("first", first), ("second", second))}
    where = {"dataset": study.validation, "label_set": label_set, "seed": second.seed, **names}
    return metrics.difference(before, after, ("macro_f1",)).assign(**where)


def _verdict(expected: str, result: str) -> str:
    if result == "no clear difference":
        return "inconclusive"
    agrees = result == expected or (expected, result) == ("no gain", "loss")
    return "agrees" if agrees else "contradicts"


def comparison_table(table: pd.DataFrame) -> pd.DataFrame:
    """`comparisons` for readers: finding, dataset, step, seed, expected, change with its interval, and verdict."""
    columns = {
        "step": table["first"] + " → " + table["second"].str.split("/", n=1).str[1],
        "change": [estimate_text(row.difference, row.low, row.high, sign="+") for row in table.itertuples()],
    }
    return table.assign(**columns)[["finding", "dataset", "step", "seed", "expected", "change", "verdict"]]


def summary(study: config.Study, table: pd.DataFrame) -> pd.DataFrame:
    """One row per finding: the paper's words, the result of this study and how sure it is."""
    run, full = title_text("this run", study.phantom), _has_comparison(config.load(study.file))
    rows = [
        {
            "finding": number,
            "the paper, published": text,
            run: _status(table[table["finding"] == number], full[number]),
            "how sure": _certainty(table[table["finding"] == number]),
        }
        for number, text in paper().items()
    ]
    return pd.DataFrame(rows)


def _status(rows: pd.DataFrame, full: bool) -> str:
    """The number of comparisons with each verdict, by the expected result; `full`: whether a full run has any."""
    if rows.empty:
        return f"no comparison speaks to it{'; left to a full run' if full else ''}"
    parts = []
    for expected, group in rows.groupby("expected", sort=False):
        counts = ", ".join(f"{count} {result}" for result, count in group["result"].value_counts(sort=False).items())
        parts.append(f"of {len(group)} expected {expected}: {counts}")
    return "; ".join(parts)


def _certainty(rows: pd.DataFrame) -> str:
    """The widths of the intervals and the number of training seeds."""
    if rows.empty:
        return "–"
    half, seeds = (rows["high"] - rows["low"]).median() / 2, rows["seed"].nunique()
    seeds_told = "one training seed, so its chance is in no interval" if seeds == 1 else f"{seeds} training seeds"
    return f"intervals of ±{half:.3f} (median); {seeds_told}"


def conclusions(study: config.Study, table: pd.DataFrame) -> list[str]:
    """One sentence per finding: whether it appears in this study."""
    kind = "this phantom run" if study.phantom else "this run"
    return [f"Finding {number} {_conclusion(table[table['finding'] == number], kind)}" for number in paper()]


def _conclusion(rows: pd.DataFrame, kind: str) -> str:
    if rows.empty:
        return f"is one that {kind} cannot speak to."
    counts = rows["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    if counts["inconclusive"] == len(rows):
        word = f"can be neither seen nor ruled out in {kind}"
    elif counts["contradicts"] == 0:
        word = f"appears in {kind}" + (" in part" if counts["inconclusive"] else "")
    elif counts["agrees"] == 0:
        word = f"does not appear in {kind}, which speaks against it"
    else:
        word = f"appears in {kind} in some comparisons, and others speak against it"
    return f"{word} ({told})."
