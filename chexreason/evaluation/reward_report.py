"""A report on a reward: what it gives the replies that a study has recorded, before anything is trained with it."""

import math
from collections import defaultdict
from pathlib import Path

import pandas as pd

from chexreason import config, models, prompts, records, rewards
from chexreason.data import curate
from chexreason.inference import predict

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
CASES = 3
"""How many of the best and of the worst replies are shown."""


def report(study: config.Study, reward: str, arguments: dict) -> dict:
    """The rewards of the recorded replies of a study's checkpoints, as data for JSON.

    `reward` is the name of a GRPO run (with its constants), or a reward as in `rewards.find`, in a file next to the
    params file or in the current folder. `arguments` are constants; without them, those of the run. Films with an
    unknown label are left out. A reward with state starts again for each checkpoint and data set.

    Keys: study, params_hash, phantom, reward, reward_args, replies, films, mean, std, quantiles (value by share), zeros
    (share), contrast (over films with several replies: films, mean_std, none: the share without any difference),
    rank_correlation (Spearman's, with the hard reward; None if one of them is constant), metrics (logged by the reward,
    means over batches), checkpoints (a list: model, checkpoint, seed, replies, mean, std, zeros, hard_reward), best and
    worst (lists of replies, never about credentialed films). Raises RecordError if no replies are recorded, and
    RewardError if the reward fails.
    """
    path, constants, settings = _reward_settings(study, reward, arguments)
    beside = study.file.parent
    if path.rpartition(":")[0].endswith(".py") and not (beside / path.rpartition(":")[0]).is_file():
        beside = Path.cwd()
    rewards.check(path, beside, constants)
    metrics: dict[str, list] = defaultdict(list)
    table = _scored_replies(study, path, beside, constants, settings, metrics)
    spread = table.groupby(["dataset", "film"])["value"].agg(["std", "size"]).query("size > 1")["std"]
    return {
        "study": study.study,
        "params_hash": study.hash,
        "phantom": study.phantom,
        "reward": path,
        "reward_args": constants,
        "replies": len(table),
        "films": table.groupby(["dataset", "film"]).ngroups,
        **_summary(table["value"]),
        "quantiles": {f"{share:g}": float(table["value"].quantile(share)) for share in QUANTILES},
        "contrast": {
            "films": len(spread),
            "mean_std": float(spread.mean()) if len(spread) else None,
            "none": float((spread == 0).mean()) if len(spread) else None,
        },
        "rank_correlation": _rank_correlation(table),
        "metrics": {name: _mean(values) for name, values in metrics.items()},
        "checkpoints": [
            dict(zip(("model", "checkpoint", "seed"), key, strict=True))
            | {"replies": len(rows), **_summary(rows["value"]), "hard_reward": float(rows["reward"].mean())}
            for key, rows in table.groupby(["model", "checkpoint", "seed"], sort=False)
        ],
        "best": _example_replies(table.sort_values("value", ascending=False, kind="stable")),
        "worst": _example_replies(table.sort_values("value", kind="stable")),
    }


def _reward_settings(study: config.Study, reward: str, arguments: dict) -> tuple[str, dict, config.Reward]:
    """The reward, its constants, and the section `reward` of its run."""
    runs = study.grpo.runs
    name = reward if reward in runs else next((name for name, run in runs.items() if run.reward == reward), None)
    if name is None:
        return reward, arguments, study.grpo.reward
    return runs[name].reward, runs[name].reward_args | arguments, study.grpo.of(name).reward


def _scored_replies(
    study: config.Study, path: str, beside: Path, arguments: dict, settings: config.Reward, metrics: dict
) -> pd.DataFrame:
    """Every recorded reply whose film has all labels, with its reward as `value`."""
    tables, processors = [], {}
    for checkpoint in study.checkpoints():
        place, model = study.paths.answers(checkpoint), checkpoint.model
        if not place.is_file():
            continue
        if model not in processors:
            processors[model] = models.load_processor(study.models[model])
        prompt = prompts.load(study.prompt(checkpoint))
        for dataset, answers in records.load(place).groupby("dataset", sort=False):
            films = curate.dataset(study, dataset).set_index("film", drop=False)
            if not answers["film"].isin(films.index).all():
                raise records.RecordError(f"{place}: films that the manifest does not list; run 5_predict again")
            films = films.loc[answers["film"]].reset_index(drop=True)
            made, answers = rewards.make_reward(path, beside, arguments, settings), answers.reset_index(drop=True)
            values = predict.score_recorded(
                made,
                path,
                films,
                answers,
                prompt,
                processors[model],
                lambda name, value: metrics[name].append(float(value)),
            )
            which = {"model": model, "checkpoint": checkpoint.name, "seed": checkpoint.seed, "value": values}
            tables.append(answers.assign(**which, **films[["credentialed", "labels"]].add_prefix("film_")))
    table = pd.concat(tables, ignore_index=True).dropna(subset=["value"]) if tables else pd.DataFrame()
    if table.empty:
        raise records.RecordError(
            f"{study.file.name}: no replies are recorded; `chexreason run ... predict` makes them"
        )
    return table


def _mean(values: list) -> float | None:
    mean = pd.Series(values, dtype="float64").mean()
    return float(mean) if math.isfinite(mean) else None


def _summary(values: pd.Series) -> dict:
    return {"mean": float(values.mean()), "std": float(values.std(ddof=0)), "zeros": float((values == 0).mean())}


def _rank_correlation(table: pd.DataFrame) -> float | None:
    value = table["value"].corr(table["reward"], method="spearman") if table["value"].nunique() > 1 else float("nan")
    return None if value != value else float(value)


def _example_replies(table: pd.DataFrame) -> list[dict]:
    """The first replies, one per film, none about a credentialed film."""
    shown = table[~table["film_credentialed"]].drop_duplicates("film").head(CASES)
    return [
        {
            **{name: getattr(row, name) for name in ("dataset", "film", "model", "checkpoint", "seed")},
            "value": row.value,
            "hard_reward": row.reward,
            "truth": list(row.film_labels),
            "text": row.text,
        }
        for row in shown.itertuples()
    ]


def text(found: dict) -> str:
    """The report as text."""
    phantom = ", phantom films" if found["phantom"] else ""
    constants = ", ".join(f"{name} {value}" for name, value in found["reward_args"].items())
    contrast, correlation = found["contrast"], found["rank_correlation"]
    lines = [
        f"{found['reward']}{f' ({constants})' if constants else ''}: {found['replies']:,} recorded replies on "
        f"{found['films']:,} films of the study {found['study']}{phantom}",
        "",
        f"mean {found['mean']:.3f}, standard deviation {found['std']:.3f}, {found['zeros']:.1%} are 0",
        "quantiles: " + ", ".join(f"{float(key):.0%} {value:.3f}" for key, value in found["quantiles"].items()),
        f"contrast: {contrast['films']:,} films have several replies; their standard deviation is "
        f"{contrast['mean_std']:.3f} on average, and 0 for {contrast['none']:.1%} of the films"
        if contrast["films"]
        else "contrast: no film has several replies",
        f"rank correlation with the hard reward: {correlation:.3f}"
        if correlation is not None
        else "rank correlation with the hard reward: undefined, as one of the two is constant",
        *(
            f"{name}: {'undefined' if value is None else f'{value:.3f}'} (logged by the reward)"
            for name, value in found["metrics"].items()
        ),
        "",
        pd.DataFrame(found["checkpoints"]).to_string(index=False, float_format="{:.3f}".format),
    ]
    for title in ("best", "worst"):
        lines += ["", f"{title} replies{'' if found[title] else ': all films are credentialed, so none is shown'}"]
        lines += [
            f"  {case['value']:.3f} (hard {case['hard_reward']:.3f})  {case['dataset']}, film {case['film']}{phantom}, "
            f"{case['model']} {case['checkpoint']}, seed {case['seed']}\n"
            f"    truth: {', '.join(case['truth']) or 'no label'}\n    {' '.join(case['text'].split())[:240]}"
            for case in found[title]
        ]
    return "\n".join(lines)
