"""The model card of a bundle, in Markdown: what it is for and not for, where it comes from, and how good it is.

All figures are handed in by `train`, but for those of `tried`, which were measured once while the recipe was made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models_tflite import description
from models_tflite.training import report, teacher, tried
from models_tflite.training.samples import TAIL

NAME = "MODEL_CARD.md"
FIGURES = "figures"  # a folder of its own, for readers in the repository: no bedside needs it
_PLOTS = ("roc", "calibration", "alarms", "lead-time")
_TARGETS = {"auroc": 0.73, "utility": 0.20, "wh": 0.685}
_TITLES = {"auroc": "AUROC", "auprc": "AUPRC", "utility": "utility", "wh": "WH"}
_OVER_NEWS2 = 0.08  # AUROC
_QUANTIZED = {"auroc": 0.003, "utility": 0.01}


def write(
    folder: Path,
    about: description.Description,
    found: dict[str, Any],
    facts: dict[str, Any],
    studied: dict[str, Any],
    shares: str,
) -> Path:
    """Write the card into the bundle's folder; returns its path.

    `found` is what `evaluate` gave on test stays, `facts` what `train` knows, `studied` what `studies` gave (or
    nothing), `shares` the table of the split.
    """
    parts = [
        _head(about, facts),
        _targets(found, facts, studied),
        _how(about, facts),
        _data(shares),
        "## Results on test patients\n\n"
        + "WH is the AUROC among rows of the same hour since admission: what a clock scores .5 in. Utility is that of "
        + "the Challenge (0: never alarm, 1: best possible). The clock-only row shows how much of a headline figure "
        + "the hour alone would give in these data; the model does not know it.\n\n"
        + report.markdown(found),
        "## Plots\n\n"
        + "\n\n".join(
            f"![{name}]({FIGURES}/{name}.svg)" for name in _PLOTS if (folder / FIGURES / f"{name}.svg").exists()
        ),
        _quantized(facts),
        _studies(studied),
        tried.markdown(),
        _seen(found, facts),
        _limits(about),
        _again(about, facts),
    ]
    path = folder / NAME
    path.write_text("\n\n".join(part.strip() for part in parts if part) + "\n")
    return path


def _head(about: description.Description, facts: dict[str, Any]) -> str:
    return f"""# {about.name} {about.version}

An hourly risk of sepsis within about six hours, from seven vital signs, age and sex, for adults in intensive care.
LSTM, {facts["parameters"]} weights as 8-bit integers, {facts["bytes"] / 1000:.0f} kB, signed.

**Not a medical device.** {about.intended_use}

- It may add an alarm of medium priority at most. It never withholds, delays, lowers or silences another.
- It is shown beside NEWS2, and does not replace it or a look at the patient.
- It abstains, with the reason, when fewer than {about.quality.least_vitals} vital signs were measured in the last
  {about.quality.recent_steps} hours, a value is none that a person can have, or an input is beyond what training saw.
- Not for children, wards, homes or transport; not for deciding on antibiotics or fluids; not as the only screen."""


def _targets(found: dict[str, Any], facts: dict[str, Any], studied: dict[str, Any]) -> str:
    ours = found["models"]["bundle"]["figures"]["all"]
    news2 = found["models"]["news2"]["figures"]["all"]["auroc"]["value"]
    rows = [(_TITLES[name], f"at least {aim:.3f}", ours[name]["value"], aim) for name, aim in _TARGETS.items()]
    rows.append(("AUROC over NEWS2", f"at least {_OVER_NEWS2:+.3f}", ours["auroc"]["value"] - news2, _OVER_NEWS2))
    for name, each in studied.get("across", {}).items():
        rows.append((f"utility, {name}", "not negative", each["utility"], 0.0))
    lines = ["## Targets, and what was reached\n", "| figure | target | reached | |", "|---|---|---|---|"]
    lines += [f"| {name} | {aim} | {value:.3f} | {_met(value >= least)} |" for name, aim, value, least in rows]
    for name, aim in _QUANTIZED.items():
        off = facts["test"]["quantized"][name] - facts["test"]["float"][name]
        lines.append(f"| {_TITLES[name]}, int8 less float | within {aim:.3f} | {off:+.4f} | {_met(abs(off) <= aim)} |")
    return "\n".join(lines)


def _met(yes: bool) -> str:
    return "met" if yes else "**missed**"


def _how(about: description.Description, facts: dict[str, Any]) -> str:
    settings = facts["settings"]
    return f"""## How it works

Inputs: heart rate, SpO2, temperature, systolic, mean and diastolic pressure, respiratory rate; age and sex. From the
last {about.window.steps} hourly values come {len(about.features.names)} inputs per hour: values, change, mean, least,
greatest and spread over 6 h and over the window, a few relations, NEWS2 points. No clock, no laboratory value, no
ward, no count of measurements. A window is always {about.window.steps} steps from zero state, early hours filled with
the first value, so that a score depends on those rows, age and sex only.

Network: LSTM cells of {settings["units"]} units, {settings["members"]} side by side, mean of their logits, logistic
calibration. Training: {settings["rounds"]} rounds over windows of random position whose last {TAIL} steps count; all
septic stays and {settings["share"]:.0%} of the others per round, weighted back; AdamW, dropout
{settings["dropout"]:g}, moving average of the weights. The target is {settings["mix"]:g} x teacher +
{1 - settings["mix"]:.1f} x label. The teacher ({teacher.FOLDS}-fold by patient, {teacher.ROUNDS} boosted trees) reads
26 laboratory values as well; the network learns to see in vital signs what the teacher sees in both."""


def _data(shares: str) -> str:
    return f"""## Data

PhysioNet/Computing in Cardiology Challenge 2019, training sets A and B: two hospitals in the United States, hourly
rows, label 1 from six hours before onset (Sepsis-3). Of the table at hand, patients belong by a hash of their id to
training, validation or test. Training teaches; validation chose recipe, calibration and thresholds; test is what the
results are measured on, and was seen more than once: see "What was seen of the test stays".

{shares}

Licence: [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/). Reyna MA, Josef CS, Jeter R, and others. Early
prediction of sepsis from clinical data: the PhysioNet/Computing in Cardiology Challenge 2019. Crit Care Med
2020;48(2):210-217. Data doi [10.13026/v64v-d857](https://doi.org/10.13026/v64v-d857). Goldberger AL, and others.
PhysioBank, PhysioToolkit, and PhysioNet. Circulation 2000;101(23):e215-e220. NEWS2 points: (c) Royal College of
Physicians, 2017. The model holds no recording; its golden examples are made up."""


def _quantized(facts: dict[str, Any]) -> str:
    lines = [
        "## Int8 weights against float\n",
        "| stays | weights | AUROC | AUPRC | utility | WH |",
        "|---|---|---|---|---|---|",
    ]
    for share in ("validation", "test"):
        for name, title in (("float", "float"), ("quantized", "int8")):
            cells = " | ".join(f"{facts[share][name][figure]:.4f}" for figure in _TITLES)
            lines.append(f"| {share} | {title} | {cells} |")
    errors = ", ".join(
        f"{package} {each['largest']:.4f} at most and {each['mean']:.5f} on average"
        for package, each in facts["errors"].items()
    )
    operations = ", ".join(f"{count} {name}" for name, count in sorted(facts["operations"].items()))
    return "\n".join(
        [
            *lines,
            "",
            "Here every row is scored, without abstention. Difference in risk from double precision over random "
            f"windows: {errors}. Operations: {operations}. Weights have one scale per matrix, so that "
            "tflite-runtime 2.14 carries the file as well; it refuses the newer scale per channel.",
        ]
    )


def _studies(studied: dict[str, Any]) -> str:
    if not studied:
        return ""
    head = "| trained | AUROC | AUPRC | utility | WH | AUROC, later than 54 h |\n|---|---|---|---|---|---|"
    lines: list[str] = []
    if studied["validation"]:
        lines += ["## What each part is worth\n", "One member each, on validation stays.\n", head]
        lines += [_row(name, each) for name, each in studied["validation"].items()]
    if studied["across"]:
        lines += ["\n## Across hospitals\n", _ACROSS, head]
        lines += [_row(name, each) for name, each in studied["across"].items()]
    return "\n".join(lines)


_ACROSS = "Everything from one hospital, one member, scored on test stays of the other.\n"


def _row(name: str, each: dict[str, float]) -> str:
    return f"| {name} | " + " | ".join(f"{each[figure]:.3f}" for figure in (*_TITLES, "later")) + " |"


def _seen(found: dict[str, Any], facts: dict[str, Any]) -> str:
    shipped = found["models"]["bundle"]["figures"]["all"]
    return tried.seen(facts["test"]["quantized"], {name: each["value"] for name, each in shipped.items()})


def _limits(about: description.Description) -> str:
    return f"""## Limits

- Hourly data: the model sees one median per vital sign and hour. Nothing is known of it at a finer cadence.
- Intensive care only, two hospitals of one country, adults, before 2019. Hospitals differ in who is admitted, how
  sepsis is recorded and how vital signs are charted; the figures across hospitals are what to expect elsewhere without
  local calibration, and may be worse.
- The label is a rule applied to records (antibiotics, cultures, SOFA), and its onset time is uncertain by hours.
- The median stay is about 40 h; stays of more than 60 h are mostly septic in these data. Whatever learns the hour looks
  better here than at a bedside. This model has no input for it; what its score gives away of it is in the table.
- Most alarms are false at any useful sensitivity: see PPV and alarms per patient-day.
- Race, ethnicity, illness and treatment were not in the data; no fairness beyond age, sex and hospital can be told.
- Temperature is measured about every third hour and carried on. A vital sign that is never measured counts as typical.
- Thresholds (on {about.thresholds.on:.4f}, off {about.thresholds.off:.4f}) maximise the Challenge's utility on
  validation stays. A hospital should choose its own from its alarm burden, after a time in shadow mode."""


def _again(about: description.Description, facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {each}" for name, each in facts["versions"].items())
    return f"""## Make it again

    make train DATA=cinc2019.parquet KEY=signing.pem SEED={facts["settings"]["seed"]}
    python -m models_tflite.training.evaluate --data cinc2019.parquet --share test --bundle <this folder>

Made with {versions}, seed {facts["settings"]["seed"]}, run {about.training["run"]}. Weights
{facts["weights"]}; teacher, training, conversion and scores took {facts["seconds"]} s on one core."""
