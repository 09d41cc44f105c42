from __future__ import annotations

import base64
import io
import math
import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import Page
from scipy.stats import binomtest
from watched_page import rendered, requests_of

import fedplatform
from fedplatform.core.statistics import effective_size, sign_flips, wilson
from fedplatform.defence.threats import USUAL_TIERS
from fedplatform.experiments.defence.cells import cells_of
from fedplatform.experiments.report import ReportError, write_report
from fedplatform.experiments.report import threat_wording as wording
from fedplatform.experiments.report.defence_charts import draw_accuracy, draw_detector
from fedplatform.experiments.report.defence_grid import defence_grids
from fedplatform.experiments.report.defence_page import write_defence_report
from fedplatform.experiments.report.defence_pairs import defence_pairs, paired_markdown
from fedplatform.experiments.report.defence_pictures import magnification
from fedplatform.experiments.report.markdown_table import defence_markdown

PAPER, STRONG = 0.015, 8 / 255
HEADING = {"dataset": "br35h", "pixels": 64, "split": "group_safe+dirichlet_0.5"}
PENALTY = {"T0": 0.0, "T1": 0.1, "T2": 0.3, "T2_paper": 0.25, "T3": 0.5, "T4": 0.6, "T4_unnoticed": 0.55, "T5": 0.45}
# Of 40 clean scans so many are answered rightly, and so much of the tiers' penalty a defence feels at 8/255.
DEFENCES = {
    "nearest_neighbour": (31, 0.2),
    "no_defence": (38, 1.5),
    "blur": (36, 1.3),
    "jpeg": (37, 1.4),
    "bit_depth": (37, 1.45),
    "purify_all": (36, 0.6),
    "purify_all_tuned": (37, 0.5),
    "mae_gate": (38, 0.9),
    "full": (38, 0.3),
}
DETECTORS = ("mae_gate", "full")
GATED_DEPTH = {"purify_all": (30, 30), "purify_all_tuned": (30, 30), "mae_gate": (0, 60), "full": (20, 60)}


@cache
def attacked_scans(*, n: int = 40, seed: int = 0, hardened: bool = False) -> pd.DataFrame:
    """What an evaluation writes of every scan; the first scans of every cell are answered rightly."""
    generator = np.random.default_rng(seed)
    rows = []
    for tier, penalty in PENALTY.items():
        for epsilon in (PAPER, STRONG) if tier != "T0" else (0.0,):
            for defence, (clean, feels) in DEFENCES.items():
                if defence == "nearest_neighbour" and tier in ("T3", "T4", "T4_unnoticed", "T5"):
                    continue
                lost = penalty * feels * (1 if epsilon == STRONG else 0.5) * (0.5 if hardened else 1)
                right = max(0, round(n * (clean / 40) * (1 - lost)) - seed)
                shift = (
                    0.0 if tier == "T0" else 1.2 if tier == "T4_unnoticed" else 3.0 * (1 if epsilon == STRONG else 0.7)
                )
                for row in range(n):
                    label = row % 2
                    score = float(generator.normal(shift)) if defence in DETECTORS else math.nan
                    usual, deep = GATED_DEPTH.get(defence, (0, 0))
                    flagged = defence in DETECTORS and score > 1.645
                    rows.append(
                        {
                            "defence": defence,
                            "adversarial_training": hardened,
                            "tier": tier,
                            "epsilon": epsilon,
                            "seed": seed,
                            "hospital_id": f"hospital-{row % 4}",
                            "row": row,
                            "group": row,
                            "label": label,
                            "answer": label if row < right else 1 - label,
                            "mean": 1.0 if row < right else 0.1,
                            "worst": row < right - 2,
                            "score": score,
                            "threshold": 1.645 if defence in DETECTORS else math.inf,
                            "flagged": flagged,
                            "referred": defence == "full" and row >= n - 2,
                            "depth": deep if flagged else usual,
                            "evaluations": 4.0 if (deep if flagged else usual) else 0.0,
                            "milliseconds": 90.0 if (deep if flagged else usual) else 3.0,
                        }
                    )
    return pd.DataFrame(rows)


@cache
def cells(*, seeds: int = 1, hardened: tuple[bool, ...] = (False,)) -> pd.DataFrame:
    scans = [attacked_scans(seed=seed, hardened=choice) for seed in range(seeds) for choice in hardened]
    return cells_of(pd.concat(scans, ignore_index=True), HEADING)


def pictures(path: Path, *, channels: int = 1, epsilon: float = STRONG) -> None:
    generator = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    ring = np.hypot(x, y)
    clean = np.stack([0.7 * (ring < 0.85) - 0.35 * np.exp(-((ring - 0.5) ** 2) / (0.02 + 0.01 * i)) for i in range(4)])
    clean[::2] += 0.4 * (np.hypot(x - 0.3, y + 0.2) < 0.16)
    clean = np.repeat(np.clip(clean, 0, 1)[:, None], channels, axis=1).astype(np.float32)
    attacked = np.clip(clean + epsilon * generator.choice([-1, 1], clean.shape), 0, 1).astype(np.float32)
    np.savez(
        path,
        clean=clean,
        attacked=attacked,
        purified=(0.8 * clean + 0.2 * attacked).astype(np.float32),
        anomaly=np.abs(generator.normal(0, 2, (4, 64, 64)) * (ring < 0.85)).astype(np.float32),
        labels=np.array([1, 0, 1, 0]),
        answers_undefended=np.array([0, 1, 0, 0]),
        answers_defended=np.array([1, 0, 0, 0]),
        flagged=np.array([True, True, False, True]),
        scores=np.array([4.12, 3.0, 1.2, 2.5]),
        thresholds=np.array([1.9, 1.9, 1.9, 1.9]),
        depths=np.array([60, 40, 0, 30]),
        epsilon=epsilon,
        classes=np.array(["no tumour", "tumour"]),
        tier="T4",
    )


def evaluated(folder: Path, scans: pd.DataFrame | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    scans = attacked_scans() if scans is None else scans
    scans.to_parquet(folder / "scans.parquet", index=False)
    cells_of(scans, HEADING).to_parquet(folder / "evaluation.parquet", index=False)
    budget = {"steps": 20, "eot": 4, "queries": 500, "penalty": 1.0, "scans": 300, "hard_scans": 100, "fresh_draws": 10}
    (folder / "evaluation.yaml").write_text(yaml.safe_dump(budget, sort_keys=False))
    pictures(folder / "pictures.npz")
    return folder


def rows_of(page: Page, selector: str) -> list[list[str]]:
    # textContent: a table inside a closed <details> shows no text.
    script = "rows => rows.map(row => [...row.children].map(cell => cell.textContent.trim()))"
    return page.locator(f"{selector} tbody tr").evaluate_all(script)


def test_a_browser_shows_what_is_left_under_attack_and_asks_nobody_for_anything(tmp_path, page):
    path = write_defence_report(evaluated(tmp_path / "demo"))
    requests = requests_of(page)
    page.goto(path.as_uri())

    assert page.locator("h1").inner_text() == (
        "Accuracy under the strongest attacker of T1 to T5: full defence keeps 87.5% at epsilon 0.015 and 77.5% at "
        "epsilon 8/255; no defence keeps 52.5% at epsilon 0.015 and 10.0% at epsilon 8/255."
    )
    low, high = wilson(31 / 40, 39)  # groups of one scan each, one of them spent on the mean
    assert rows_of(page, "#minima")[1] == [
        "full defence",
        "8/255",
        "77.5%",
        f"{100 * low:.1f}% to {100 * high:.1f}%",
        "40",
        "T4",
        "–",
    ]
    tables = page.locator(".grid-table").all()
    assert [rendered(table, "caption") for table in tables] == [["Epsilon 0.015"], ["Epsilon 8/255"]]
    heads = rendered(tables[1], "thead th")
    assert heads == ["Defence", "Minimum\nT1 to T5", *(f"{tier.replace('_', ' ')}\nn = 40" for tier in USUAL_TIERS)]
    by_name = {row[0]: row[1:] for row in rows_of(page, ".grid-table")[len(DEFENCES) :]}
    assert by_name["nearest neighbour"][0] == "–"
    assert by_name["nearest neighbour"][5:] == ["not run"] * 4
    assert by_name["full defence"][0].startswith("77.5 ★")
    assert "5.0% referred" in by_name["full defence"][1]
    assert by_name["no defence"][0].startswith("10.0T4")

    costs = {(row[0], row[1]): row[2:] for row in rows_of(page, "#costs")}
    assert costs["full defence", "clean"][1] == "100.0%"
    assert costs["no defence", "8/255"] == [
        "0.0%",
        "0.0%",
        "0.0%",
        costs["no defence", "8/255"][3],
        "0",
        "3",
    ]
    assert len(rows_of(page, "#cells")) == len(cells())
    assert ["eot", "4"] in rows_of(page, "#budget")
    assert ["seeds of the cells", "0"] in rows_of(page, "#budget")
    link = page.locator("a[download]").get_attribute("href")
    csv = pd.read_csv(io.StringIO(base64.b64decode(link.split(",", 1)[1]).decode()))
    assert csv["accuracy"].tolist() == cells()["accuracy"].tolist()

    verdicts = rendered(page, ".story p")
    assert verdicts[0] == (
        "Truth: tumour. undefended: no tumour (wrong) → caught (score 4.1 > 1.9), purified to depth 60, "
        "answered: tumour (right)"
    )
    assert verdicts[2].endswith("not caught (score 1.2 ≤ 1.9), taken as it is, answered: no tumour (wrong)")
    assert page.locator(".story.wrong").count() == 1
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert widths == [64] * 4 * 5
    assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}


def test_the_page_fits_a_telephone(tmp_path, telephone):
    telephone.goto(write_defence_report(evaluated(tmp_path / "demo", attacked_scans(hardened=True))).as_uri())
    assert telephone.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_page_of_the_run_tells_of_the_attack_and_links_to_it(tmp_path, page):
    from test_report import run_folder

    folder = run_folder(tmp_path / "demo", rounds=2)
    assert "Under attack" not in write_report(folder).read_text(encoding="utf-8")
    page.goto(write_report(evaluated(folder)).as_uri())
    section = page.locator("#under-attack")
    assert "full defence keeps 87.5% at epsilon 0.015" in section.inner_text()
    assert section.locator(".story").count() == 2
    section.locator("a").click()
    assert page.url == (folder / "evaluation.html").as_uri()
    assert "under attack" in page.title()


def test_the_drawn_curves_stand_where_the_figures_say(tmp_path):
    plots = {plot.title.split(":")[0]: plot for plot in draw_accuracy(defence_grids(cells()))}
    assert list(plots) == [tier for tier in USUAL_TIERS if tier != "T0"]
    curves = {curve.label: curve for curve in plots["T4"].curves}
    assert "nearest neighbour" not in curves  # it never met T4
    xs, ys = zip(*[(x, y) for x, y, _ in curves["full defence"].dots], strict=True)
    span = plots["T4"].right - plots["T4"].left
    assert xs == pytest.approx([44, 44 + span * PAPER / STRONG, 320], abs=0.1)
    assert ys == pytest.approx([198 - share * (198 - 12) for share in (38 / 40, 35 / 40, 31 / 40)], abs=0.1)
    assert curves["full defence"].dots[2][2].startswith("full defence, epsilon 8/255: 77.5% (62.3% to 87.8%, n = 40)")


def test_the_detector_is_judged_by_its_own_clean_scans_of_the_same_defence():
    scans = attacked_scans()
    (plot,) = (plot for plot in draw_detector(scans) if plot.title == "T4_unnoticed: Unnoticed")
    assert [curve.label.split(":")[0] for curve in plot.curves if curve.label] == [
        "MAE gate, fixed depth, 8/255",
        "MAE gate, fixed depth, 0.015",
        "full defence, 8/255",
        "full defence, 0.015",
    ]
    own = scans[scans["defence"] == "full"]
    clean = own.loc[own["tier"] == "T0", "score"]
    attacked = own[(own["tier"] == "T4_unnoticed") & (own["epsilon"] == STRONG)]
    slow = np.mean([[one > other for one in attacked["score"]] for other in clean])
    label = plot.curves[3].label
    assert f"AUC {slow:.3f}" in label
    assert f"catches {100 * attacked['flagged'].mean():.1f}% at {100 * (clean > 1.645).mean():.1f}% false" in label


def test_without_a_detector_or_an_attack_there_is_no_curve(tmp_path):
    scans = attacked_scans()
    assert draw_detector(scans[~scans["defence"].isin(DETECTORS)]) == []
    assert draw_detector(scans[scans["tier"] == "T0"]) == []
    page = write_defence_report(evaluated(tmp_path / "demo", scans[scans["tier"] == "T0"]))
    text = page.read_text(encoding="utf-8")
    assert "Neither the full defence nor an undefended model was attacked." in text
    assert "Accuracy against epsilon" not in text


def test_an_attacker_that_was_not_tried_is_named_and_the_minimum_does_not_win():
    frame = cells()
    left_out = frame[~((frame["defence"] == "full") & frame["tier"].isin(["T3", "T4", "T4_unnoticed"]))]
    strong = defence_grids(left_out)[1]
    whole = next(row for row in strong.rows if row.defence == "full")
    assert whole.missing == ("T3", "T4", "T4_unnoticed")
    assert whole.worst is not None
    assert whole.worst.tier == "T5"
    assert [row.defence for row in strong.rows if strong.is_best_worst(row)] == ["purify_all_tuned"]
    _, line = (line for line in defence_markdown(left_out).splitlines() if line.startswith("| full"))
    assert line.endswith("| – | – | – | **82.5** | 82.5 (T5; not tried: T3, T4 and T4_unnoticed) |")


def test_more_patience_with_one_row_counts_for_it_and_leaves_no_gap_in_the_others():
    frame = cells()
    patient = frame[(frame["defence"] == "full") & (frame["tier"] == "T4")].assign(tier="T4_strong", accuracy=0.1)
    grid = defence_grids(pd.concat([frame, patient]))[1]
    rows = {row.defence: row for row in grid.rows}
    worst = rows["full"].worst
    assert worst is not None
    assert (worst.tier, worst.accuracy) == ("T4_strong", 0.1)
    assert not grid.is_best(rows["full"], worst), "nobody else met this attacker"
    assert [row.defence for row in grid.rows if grid.is_best_worst(row)] == ["full"], "whom he spared do not compete"
    assert rows["purify_all_tuned"].missing == ()


def test_every_defence_has_a_line_that_can_be_seen():
    css = (Path(fedplatform.__file__).parent / "experiments/report/templates/defence.css").read_text()
    styled = {name for names in re.findall(r"^(\.d-[^{]+){ stroke: ", css, re.MULTILINE) for name in names.split(", ")}
    assert {f".d-{defence.replace('_', '-')}" for defence in wording.DEFENCES} <= {name.strip() for name in styled}


def test_the_table_in_markdown_reads_like_the_page():
    frame = cells(seeds=3, hardened=(False, True))
    lines = defence_markdown(frame).splitlines()
    assert lines[0] == (
        "br35h, 64 pixels, group_safe+dirichlet_0.5, epsilon 0.015; answered rightly in percent, "
        "mean ± sd over 3 seeds, n scans of all seeds"
    )
    assert (
        lines[2] == "| defence | adversarial training | T0 | T1 | T2 | T2_paper | T3 | T4 | T4_unnoticed | T5 | min |"
    )
    assert (
        lines[4] == "| nearest neighbour | no | 75.0 ± 2.5 | 75.0 ± 2.5 | 72.5 ± 2.5 | 72.5 ± 2.5 | – | – | – | – | – |"
    )
    last = next(line for line in lines if line.startswith("| n |"))
    assert last == "| n |  | 120 | 120 | 120 | 120 | 120 | 120 | 120 | 120 |  |"
    rows = frame[(frame["defence"] == "full") & ~frame["adversarial_training"] & (frame["tier"] == "T4")]
    strong = rows.loc[rows["epsilon"] == STRONG, "accuracy"]
    whole = [line for line in lines if line.startswith("| full defence | no")][1]
    assert f"| {100 * strong.mean():.1f} ± {100 * strong.std():.1f} (T4) |" in whole


def test_a_cell_with_fewer_seeds_says_so():
    frame = cells(seeds=2)
    fewer = frame[~((frame["defence"] == "blur") & (frame["tier"] == "T5") & (frame["seed"] == 1))]
    blur = next(line for line in defence_markdown(fewer).splitlines() if line.startswith("| Gaussian blur"))
    assert blur.count("(1 of 2 seeds)") == 1


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(drawn):
    right, n = drawn
    low, high = wilson(right / n, n)
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= right / n + 1e-12
    assert right / n - 1e-12 <= high <= 1


@given(st.floats(1e-4, 0.5))
def test_the_drawn_perturbation_fits_around_grey_and_no_larger_power_of_two_would(epsilon):
    times = magnification(np.full((1, 1, 2, 2), epsilon), np.zeros((1, 1, 2, 2)))
    assert math.log2(times).is_integer()
    assert times * epsilon <= 0.504
    assert 2 * times * epsilon > 0.5


def test_the_drawn_perturbation_says_its_magnification_and_keeps_grey_for_no_change(tmp_path):
    folder = evaluated(tmp_path / "demo")
    kept = dict(np.load(folder / "pictures.npz"))
    kept["attacked"] = kept["clean"].copy()
    kept["attacked"][0, 0, 0, 0] = kept["clean"][0, 0, 0, 0] + 8 / 255
    np.savez(folder / "pictures.npz", **kept)
    text = write_defence_report(folder).read_text(encoding="utf-8")
    found = re.search(r'base64,([^"]+)" alt="perturbation × 16, grey = 0', text)
    assert found
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))
    assert drawn[0, 0] == 255
    assert set(drawn.ravel()[1:]) == {128}


def test_of_a_scan_without_a_detector_nothing_is_said_about_being_caught(tmp_path):
    folder = evaluated(tmp_path / "demo")
    kept = dict(np.load(folder / "pictures.npz")) | {"thresholds": np.full(4, math.inf), "scores": np.zeros(4)}
    np.savez(folder / "pictures.npz", **kept)
    text = write_defence_report(folder).read_text(encoding="utf-8")
    assert "undefended: no tumour (wrong) → purified to depth 60, answered: tumour (right)" in text
    assert "caught (score" not in text


def test_colour_scans_are_shown_too_and_a_page_without_pictures_says_so(tmp_path):
    folder = evaluated(tmp_path / "demo")
    pictures(folder / "pictures.npz", channels=3)
    text = write_defence_report(folder).read_text(encoding="utf-8")
    first = re.search(r'base64,([^"]+)" alt="scan of', text)
    assert first
    assert Image.open(io.BytesIO(base64.b64decode(first[1]))).mode == "RGB"
    (folder / "pictures.npz").unlink()
    assert "The evaluation kept none." in write_defence_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["evaluation.parquet", "scans.parquet", "evaluation.yaml"])
def test_a_folder_without_its_evaluation_is_refused_by_name(tmp_path, name):
    folder = evaluated(tmp_path / "demo")
    (folder / name).unlink()
    with pytest.raises(ReportError, match=rf"lacks {name}$"):
        write_defence_report(folder)
    assert not (folder / "evaluation.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("evaluation.parquet", b"PAR1 but not really", "is no readable Parquet file"),
        ("scans.parquet", b"", "is no readable Parquet file"),
        ("evaluation.yaml", b"steps: [", "is no YAML"),
        ("evaluation.yaml", b"- 20", "is a mapping of settings, got list"),
        ("pictures.npz", b"nothing", "holds clean, attacked, purified"),
        ("pictures.npz", b"", "holds clean, attacked, purified"),
        ("pictures.npz", b"PK\x03\x04 broken", "holds clean, attacked, purified"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path, name, content, rule):
    folder = evaluated(tmp_path / "demo")
    (folder / name).write_bytes(content)
    with pytest.raises(ReportError, match=rule) as caught:
        write_defence_report(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "wrong", "rule"),
    [
        ("clean", np.zeros((4, 2, 64, 64)), r"scans are \(m, 1 or 3, h, w\), got \(4, 2, 64, 64\)"),
        ("purified", np.zeros((3, 1, 64, 64)), "purified belongs to clean"),
        ("scores", np.zeros(3), r"scores belongs to clean .* so it is \(4,\), got \(3,\)"),
        ("answers_defended", np.array([0, 1, 2, 0]), "names 2 classes, got an answer or label 2"),
    ],
)
def test_pictures_that_do_not_belong_together_are_refused(tmp_path, name, wrong, rule):
    folder = evaluated(tmp_path / "demo")
    np.savez(folder / "pictures.npz", **{**dict(np.load(folder / "pictures.npz")), name: wrong})
    with pytest.raises(ReportError, match=rule):
        write_defence_report(folder)


def test_a_table_that_would_mislead_is_refused(tmp_path):
    table = cells()
    with pytest.raises(ReportError, match="got no tier, n"):
        defence_markdown(table.drop(columns=["tier", "n"]))
    with pytest.raises(ReportError, match=r"accuracy is a share in \[0, 1\], got 95.0 in row 0"):
        defence_markdown(table.assign(accuracy=95.0))
    with pytest.raises(ReportError, match=r"accuracy is a share in \[0, 1\], got nan"):
        defence_markdown(table.assign(accuracy=math.nan))
    with pytest.raises(ReportError, match="counts every cell once, got two rows for defence nearest_neighbour"):
        defence_markdown(pd.concat([table, table.head(1)], ignore_index=True))
    with pytest.raises(ReportError, match=r"a tier is one of T0, .* got T9"):
        defence_markdown(table.assign(tier="T9"))
    with pytest.raises(ReportError, match="at least one cell, got none"):
        defence_markdown(table.head(0))
    folder = evaluated(tmp_path / "demo")
    pd.concat([table, table.assign(split="random")]).to_parquet(folder / "evaluation.parquet")
    with pytest.raises(ReportError, match="one data set at one size and split"):
        write_defence_report(folder)


def test_a_pair_of_defences_is_compared_on_the_scans_that_both_were_tried_on() -> None:
    keys = {"adversarial_training": True, "tier": "T4", "epsilon": 8 / 255, "label": 1}
    # Three rows a seed; those numbered 2 are of one patient, whichever seed drew them.
    answers = {  # seed, row: whole, other
        (0, 1): (1, 1),
        (0, 2): (1, 0),
        (0, 3): (1, 0),
        (1, 1): (0, 1),
        (1, 2): (0, 0),
        (1, 3): (1, 0),
    }
    rows = [
        {**keys, "seed": seed, "row": row, "group": row, "defence": defence, "answer": answer}
        for (seed, row), pair in answers.items()
        for defence, answer in zip(("full", "no_defence"), pair, strict=True)
    ]
    rows.append(
        {**keys, "seed": 2, "row": 9, "group": 9, "defence": "no_defence", "answer": 1}
    )  # the whole never saw it
    (found,) = defence_pairs(pd.DataFrame(rows)).to_dict("records")
    assert (found["n"], found["gained"], found["lost"]) == (6, 3, 1)
    assert (found["seeds"], found["seeds_better"]) == (2, 1)
    assert found["groups"] == 3
    assert found["p"] == 0.75, "gains less losses of the groups are -1, 1 and 2: of 8 choices of signs 6 go as far as 2"
    (line,) = paired_markdown(pd.DataFrame(rows)).splitlines()[4:]
    assert line == "| no defence | yes | 8/255 | T4 | +33.3 | 6 | 3 | 1 of 2 | 0.750 |"
    assert paired_markdown(pd.DataFrame(rows)[lambda frame: frame["defence"] == "full"]) == ""


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(1, 8))
def test_copies_of_a_scan_tell_no_more_than_the_scan(right, copies):
    once, groups = np.array(right), np.arange(len(right))
    alone = effective_size(once, groups)
    again = effective_size(np.repeat(once, copies), np.repeat(groups, copies))
    assert again == pytest.approx(alone)
    assert len(right) - 1 - 1e-9 <= alone <= len(right)
    one_group = effective_size(once, np.zeros(len(right)))
    assert one_group == 1


@given(st.integers(0, 12), st.integers(0, 12))
def test_where_every_group_is_one_scan_the_sign_flips_are_mcnemars_test(gained, lost):
    gains = np.array([1] * gained + [-1] * lost + [0] * 5)
    exact = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert sign_flips(gains) == pytest.approx(exact, abs=1e-9 if gained + lost <= 12 else 0.02)
    assert sign_flips(-gains) == pytest.approx(sign_flips(gains), abs=0.02)


def test_thirty_slices_of_one_patient_prove_nothing_that_one_does_not():
    assert sign_flips(np.ones(30)) < 1e-3
    assert sign_flips(np.array([30])) == 1.0
