from __future__ import annotations

import base64
import io
import math
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import Locator, Page
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from watched_page import rendered, requests_of

from fedplatform.core.messages import HospitalRecord, HospitalState, RoundReport
from fedplatform.experiments.report import ReportError, comparison_markdown, read_run, write_comparison, write_report
from fedplatform.experiments.report.charts import draw_trust
from fedplatform.experiments.report.fingerprint_map import FEATURES
from fedplatform.experiments.report.headline import headline
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.federated.trust.fingerprint import FEATURES as TRUST_FEATURES


def hospital_record(
    number: int, index: int, *, hospitals: int, byzantine: int, prefix: str = "hospital"
) -> HospitalRecord:
    is_byzantine = index >= hospitals - byzantine
    state, reason = HospitalState.REPORTED, ""
    if is_byzantine and number > 1:
        state, reason = HospitalState.HOSTILE, "its update is far from its 6 nearest"
    elif (number, index) == (2, 0):
        state, reason = HospitalState.LATE, "nothing arrived within 30 s"
    elif (number, index) == (3, 1):
        state, reason = HospitalState.CRASHED, "its process died (signal 9)"
    elif (number, index) == (4, 1):
        state, reason = HospitalState.MALFORMED, "delta holds 12 values that are not finite"
    arrived = state in (HospitalState.REPORTED, HospitalState.HOSTILE)
    return HospitalRecord(
        round_number=number,
        hospital_id=f"{prefix}-{index}",
        state=state,
        reason=reason,
        is_byzantine=is_byzantine,
        num_examples=200 + 30 * index,
        norm=(9.5 if is_byzantine else 2.0 / number) if arrived else math.nan,
        cosine=(-0.4 if is_byzantine else 0.8) if arrived else math.nan,
        weight=(1 + 0.1 * index) / hospitals if state == HospitalState.REPORTED else 0.0,
        train_loss=0.7 / number,
        train_seconds=1.0 + 0.1 * index if arrived else math.nan,
        accuracy=math.nan if is_byzantine else 0.95 - 0.45 / number - 0.02 * math.sin(5 * index + number),
        loss=math.nan if is_byzantine else 0.7 / number,
    )


def run_folder(
    folder: Path,
    *,
    hospitals: int = 10,
    byzantine: int = 3,
    rounds: int = 8,
    classes: tuple[str, ...] = ("healthy", "tumour"),
    prefix: str = "hospital",
) -> Path:
    folder.mkdir(parents=True)
    experiment = {
        "name": folder.name,
        "data": "br35h",
        "model": "resnet18",
        "rule": "multi_krum",
        "attack": "sign_flip" if byzantine else "none",
        "hospitals": hospitals,
        "byzantine": byzantine,
        "rounds": rounds,
        "seed": 0,
        "partition": {"kind": "dirichlet", "concentration": 0.5},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    reports = [
        RoundReport(
            round_number=number,
            accuracy=0.94 - 0.42 / number,
            macro_f1=0.93 - 0.45 / number,
            auc=0.98 - 0.4 / number,
            loss=0.2 + 0.5 / number,
            validation_accuracy=0.92 - 0.4 / number,
            train_seconds=12.0,
            aggregate_seconds=0.5,
            evaluate_seconds=2.5,
            hospitals=tuple(
                hospital_record(number, index, hospitals=hospitals, byzantine=byzantine, prefix=prefix)
                for index in range(hospitals)
            ),
            confusion=tuple(
                tuple(90 if row == column else 5 + row for column in range(len(classes))) for row in range(len(classes))
            ),
        )
        for number in range(1, rounds + 1)
    ]
    write_tables(folder, reports)
    generator = np.random.default_rng(0)
    ring = np.hypot(*np.mgrid[-1:1:64j, -1:1:64j])
    images = np.stack([255 * np.exp(-((ring - 0.5 - 0.1 * index) ** 2) / 0.02) for index in range(6)])
    labels = np.arange(6) % len(classes)
    probabilities = np.full((6, len(classes)), 0.1 / (len(classes) - 1), dtype=np.float32)
    probabilities[np.arange(6), labels] = 0.9
    probabilities[5] = np.roll(probabilities[5], 1)
    noisy = np.clip(images + generator.normal(0, 6, images.shape), 0, 255).astype(np.uint8)[:, None]
    np.savez(
        folder / "samples.npz", images=noisy, labels=labels, probabilities=probabilities, classes=np.array(classes)
    )
    return folder


def write_tables(folder: Path, reports: list[RoundReport]) -> None:
    rows = [{key: value for key, value in asdict(report).items() if key != "hospitals"} for report in reports]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rounds.parquet")
    records = [asdict(record) for report in reports for record in report.hospitals]
    pq.write_table(pa.Table.from_pylist(records), folder / "hospitals.parquet")


def scored(reports: Iterable[RoundReport]) -> list[RoundReport]:
    """The same rounds as a rule that scores trust would tell them; attackers stand out in all."""

    def judged(own: HospitalRecord) -> HospitalRecord:
        if math.isnan(own.norm):
            return own  # no update, nothing to judge
        lies = own.is_byzantine
        wave = math.sin(own.round_number + 7 * int(own.hospital_id.rsplit("-", 1)[1]))
        return replace(
            own,
            trust=0.1 + 0.05 * wave if lies else 0.9 + 0.05 * wave,
            reputation=max(0.05, 0.5 - 0.05 * own.round_number) if lies else min(0.95, 0.5 + 0.05 * own.round_number),
            reconstruction_error=4.5 if lies else 1.0 + 0.1 * wave,
            root_cosine=-0.41 if lies else 0.7,
            peer_cosine=0.12 if lies else 0.5,
            sign_agreement=0.46 if lies else 0.58,
            shapley=-0.021 if lies else 0.04,
            z_reconstruction_error=5.5 if lies else wave,
            z_root_cosine=-8.4 if lies else wave,
            z_peer_cosine=-3.0 if lies else wave,
            z_norm=9.0 if lies else 0.0,
            z_sign_agreement=-6.0 if lies else wave,
            z_shapley=-2.5 if lies else wave,
        )

    return [replace(report, hospitals=tuple(map(judged, report.hospitals))) for report in reports]


def scored_folder(
    folder: Path, *, hospitals: int = 10, byzantine: int = 3, rounds: int = 8, prefix: str = "hospital"
) -> Path:
    run_folder(folder, hospitals=hospitals, byzantine=byzantine, rounds=rounds, prefix=prefix)
    write_tables(folder, scored(read_run(folder).rounds))
    return folder


def comparison_rows(*, seeds: int = 3) -> pd.DataFrame:
    accuracy = {
        ("mean", "none"): 0.95,
        ("mean", "sign_flip"): 0.50,
        ("mean", "alie"): 0.60,
        ("multi_krum", "none"): 0.94,
        ("multi_krum", "sign_flip"): 0.90,
        ("multi_krum", "alie"): 0.70,
        ("median", "none"): 0.93,
        ("median", "sign_flip"): 0.88,
        ("median", "alie"): 0.80,
    }
    rows = [
        {
            "dataset": "br35h",
            "split": "group_safe+dirichlet_0.5",
            "rule": rule,
            "attack": attack,
            "hospitals": 10,
            "byzantine": 0 if attack == "none" else 3,
            "rounds": 15,
            "seed": seed,
            "accuracy": value + 0.01 * (seed - 1),
            "macro_f1": value - 0.02,
            "auc": value,
        }
        for (rule, attack), value in accuracy.items()
        for seed in range(seeds)
    ]
    reference = {
        "dataset": "br35h",
        "split": "group_safe",
        "attack": "none",
        "hospitals": 1,
        "byzantine": 0,
        "rounds": 0,
    }
    rows.append({**reference, "rule": "nearest_neighbour", "seed": 0, "accuracy": 0.99, "macro_f1": 0.99, "auc": None})
    return pd.DataFrame(rows)


def cells(page: Page, selector: str) -> list[list[str]]:
    return [rendered(row, "th, td") for row in page.locator(f"{selector} tbody tr").all()]


def captions(page: Page | Locator, selector: str) -> list[str]:
    """The text of each element of a drawing that is shown."""
    return page.locator(f"{selector} >> visible=true").all_text_contents()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_balanced_accuracy_and_majority_are_those_of_the_definition(scans: list[tuple[int, int]]) -> None:
    truths, answers = np.array(scans).T
    counts = confusion_matrix(truths, answers, labels=[0, 1, 2])
    accuracy = float((truths == answers).mean())
    report = RoundReport(1, accuracy, 0, 0, 0, 0, 0, 0, 0, (), tuple(map(tuple, counts.tolist())))
    most = np.bincount(truths).max() / len(truths)
    assert report.majority == pytest.approx(most)
    assert report.beats_majority == (report.accuracy > report.majority)
    if set(truths) == {0, 1, 2}:
        assert report.balanced_accuracy == pytest.approx(balanced_accuracy_score(truths, answers))
    else:
        assert math.isnan(report.balanced_accuracy)


def test_a_model_that_only_knows_the_majority_is_said_to_be_no_better(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "majority")
    run = read_run(folder)
    last = replace(run.rounds[-1], accuracy=0.9, confusion=((90, 0), (10, 0)))
    said = headline(replace(run, rounds=(*run.rounds[:-1], last)))
    assert "balanced accuracy 50.0%" in said
    assert "accuracy 90.0%), no more than the 90.0% of always answering the same; " in said


def test_a_browser_shows_the_whole_story_of_a_run_and_asks_nobody_for_anything(tmp_path, page):
    path = write_report(run_folder(tmp_path / "demo"))
    requests = requests_of(page)
    page.goto(path.as_uri())

    headline = page.locator("h1").inner_text()
    mean = read_run(path.parent).rounds[-1].over_hospitals("accuracy")
    assert headline == (
        "10 hospitals, 3 of them Byzantine (sign_flip), trained resnet18 on br35h for 8 rounds under the rule "
        f"multi_krum and ended with an accuracy of {mean:.1%} in the mean over hospitals "
        "(all test scans pooled: balanced accuracy 94.2%, AUC 93.0% and accuracy 88.8%); "
        "the rule shut out hospital-7, hospital-8 and hospital-9, exactly the 3 attackers."
    )
    hospitals = cells(page, "#hospitals")
    assert len(hospitals) == 10
    assert hospitals[9][0] == "hospital-9"
    assert "Byzantine" in hospitals[9][1]
    assert hospitals[9][2] == "–"
    assert [row[1] for row in hospitals[:7]] == ["honest"] * 7
    events = cells(page, "#events")
    assert [
        "4",
        "hospital-1",
        "sent something that is not an update",
        "delta holds 12 values that are not finite",
    ] in events
    assert [
        "2–8",
        "hospital-9 Byzantine",
        "was shut out by the rule",
        "its update is far from its 6 nearest",
    ] in events
    assert cells(page, "#confusion") == [["healthy", "90\n94.7%", "5\n5.3%"], ["tumour", "6\n6.2%", "90\n93.8%"]]
    assert len(cells(page, "#phases")) == 3
    assert ["partition", "{concentration: 0.5, kind: dirichlet}"] in cells(page, "#settings")
    assert "fedplatform run experiment.yaml" in page.locator("pre").inner_text()
    assert "no medical device" in page.locator("footer").inner_text()

    assert page.locator(".scans figure").count() == 6
    assert page.locator(".scans figure.wrong").count() == 1
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert widths == [64] * 6
    assert all(image.get_attribute("alt") for image in page.locator("img").all())

    assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}


def test_every_cell_of_the_heat_map_is_drawn_and_says_why(tmp_path, page):
    page.goto(write_report(run_folder(tmp_path / "demo")).as_uri())

    drawn = page.locator(".heat use")
    assert drawn.count() == 10 * 8
    assert min(drawn.evaluate_all("cells => cells.map(cell => cell.getBoundingClientRect().width)")) > 8
    titles = drawn.all_text_contents()
    assert "hospital-1, round 3: crashed, weight 0 (its process died (signal 9))" in titles
    assert captions(page, ".heat .lie") == ["Byzantine"] * 3


def test_trust_and_reputation_are_drawn_with_a_line_for_every_hospital(tmp_path, page):
    folder = scored_folder(tmp_path / "demo")
    page.goto(write_report(folder).as_uri())

    figures = page.locator(".pair figure").all()
    assert [rendered(figure, "h3") for figure in figures] == [["Trust"], ["Reputation"]]
    for figure in figures:
        assert figure.locator(".chart path.thin").count() == 7
        assert figure.locator(".chart path.thin-attacker").count() == 3
        assert captions(figure, ".chart text[text-anchor=end]") == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert rendered(figures[1], "figcaption") == ["Mean after round 8: honest hospitals 0.9, Byzantine hospitals 0.1."]
    assert all("One Byzantine hospital" in figure.locator(".legend").inner_text() for figure in figures)

    script = "dots => dots.map(dot => [dot.textContent, +dot.getAttribute('cy')])"
    said = dict(figures[1].locator("circle").evaluate_all(script))
    assert len(said) == 10 * 8 - 3  # three updates never arrived
    assert "hospital-1, round 3: 0.65" not in said  # it crashed
    assert said["hospital-9, round 8: 0.1"] == pytest.approx(198 - 0.1 * (198 - 12), abs=0.1)
    assert said["hospital-0, round 8: 0.9"] == pytest.approx(198 - 0.9 * (198 - 12), abs=0.1)


def colour(page: Page, title: str) -> tuple[int, ...]:
    """What the reader sees of the one cell with this title: a pixel near its corner, red, green and blue."""
    cell = page.locator(".fingerprint use", has_text=re.compile(f"^{re.escape(title)}$"))
    return Image.open(io.BytesIO(cell.screenshot())).convert("RGB").getpixel((3, 3))


def test_the_fingerprint_of_every_update_is_drawn_feature_by_feature(tmp_path, page):
    page.goto(write_report(scored_folder(tmp_path / "demo")).as_uri())

    blocks = page.locator(".fingerprint").all()
    assert [block.locator("h3").inner_text() for block in blocks] == [
        "Reconstruction error",
        "Cosine to the root update",
        "Mean cosine to the others",
        "Norm",
        "Sign agreement with the root",
        "Shapley value",
    ]
    for block in blocks:
        names = [f"hospital-{index}{' Byzantine' if index > 6 else ''}" for index in range(10)]
        assert captions(block, ".name") == names
        places = block.locator("use").evaluate_all(
            "cells => cells.map(cell => [cell.getBoundingClientRect().x, cell.getBoundingClientRect().y])"
        )
        assert len({tuple(place) for place in places}) == 10 * 8
    titles = page.locator(".fingerprint use").all_text_contents()
    assert "hospital-9, cosine to the root update, round 5: -0.41, z -8.4" in titles
    assert "hospital-7, norm, round 1: 9.5, z +9.0" in titles
    assert "hospital-1, norm, round 3: no figure, crashed" in titles
    legend = page.locator("h2:text-is('Fingerprints of the updates') ~ ul").inner_text()
    assert "-6 and below" in legend
    assert "+6 and above" in legend


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_far_above_far_below_at_the_median_and_missing_are_four_colours(tmp_path, page, scheme):
    page.goto(write_report(scored_folder(tmp_path / "demo")).as_uri())
    page.emulate_media(color_scheme=scheme)

    far_above = colour(page, "hospital-9, norm, round 5: 9.5, z +9.0")
    far_below = colour(page, "hospital-9, cosine to the root update, round 5: -0.41, z -8.4")
    at_six = colour(page, "hospital-9, sign agreement with the root, round 5: 0.46, z -6.0")
    below = colour(page, "hospital-9, mean cosine to the others, round 5: 0.12, z -3.0")
    median = colour(page, "hospital-0, norm, round 5: 0.4, z +0.0")
    missing = colour(page, "hospital-0, norm, round 2: no figure, late")
    assert at_six == far_below
    assert len({far_above, far_below, below, median, missing}) == 5
    assert below == pytest.approx(np.mean([median, far_below], axis=0), abs=1)
    assert far_above[0] > far_above[2] + 50  # red
    assert far_below[2] > far_below[0] + 50  # blue


def test_a_run_whose_rule_scores_nobody_shows_neither_trust_nor_fingerprints(tmp_path):
    page = write_report(run_folder(tmp_path / "demo")).read_text(encoding="utf-8")
    assert "<h2>Trust over rounds</h2>" not in page
    assert "<h2>Fingerprints of the updates</h2>" not in page
    assert 'class="card fingerprint"' not in page


def test_only_what_the_rule_measured_is_drawn(tmp_path):
    folder = scored_folder(tmp_path / "demo", rounds=2)
    rounds = read_run(folder).rounds

    def without(*names: str) -> str:
        blank = dict.fromkeys(names, math.nan)
        write_tables(
            folder,
            [replace(report, hospitals=tuple(replace(own, **blank) for own in report.hospitals)) for report in rounds],
        )
        return write_report(folder).read_text(encoding="utf-8")

    features = tuple(f"z_{name}" for name in FEATURES)
    no_root = without("z_root_cosine", "z_sign_agreement")
    assert [name in no_root for name in ("<h3>Norm<", "<h3>Cosine to the root", "<h3>Sign agreement")] == [1, 0, 0]
    bare = without(*features)
    assert "<h2>Trust over rounds</h2>" in bare
    assert "<h2>Fingerprints of the updates</h2>" not in bare
    unreputed = without("reputation")
    assert [name in unreputed for name in ("<h3>Trust<", "<h3>Reputation<")] == [1, 0]


def test_trust_is_always_drawn_from_nought_to_one(tmp_path):
    honest = scored_folder(tmp_path / "honest", byzantine=0, rounds=2)
    for chart in draw_trust(read_run(honest)):
        assert [text for _, text in chart.y_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_the_page_knows_every_feature_that_the_fingerprint_has():
    assert tuple(FEATURES) == TRUST_FEATURES


def test_a_remark_on_an_update_that_was_used_is_an_event_too(tmp_path, page):
    folder = run_folder(tmp_path / "demo", hospitals=4, byzantine=1, rounds=8)
    said = {
        3: (HospitalState.HOSTILE, "excluded: norm 31 times the median"),
        4: (HospitalState.HOSTILE, "excluded: norm 2.5e+03 times the median"),
        5: (HospitalState.HOSTILE, "excluded: the same as hospital-1"),
        6: (HospitalState.HOSTILE, "excluded: the same as hospital-2"),
        7: (HospitalState.REPORTED, "reinstated: reputation 0.61"),
    }
    rounds = []
    for report in read_run(folder).rounds:
        state, reason = said.get(report.round_number, (HospitalState.REPORTED, ""))
        records = [replace(own, state=HospitalState.REPORTED, reason="") for own in report.hospitals]
        records[2] = replace(records[2], state=state, reason=reason)
        rounds.append(replace(report, hospitals=tuple(records)))
    write_tables(folder, rounds)
    page.goto(write_report(folder).as_uri())

    figures = "excluded: norm 31 times the median (round 3; later ones with other figures)"
    assert cells(page, "#events") == [
        ["3–4", "hospital-2", "was shut out by the rule", figures],
        ["5", "hospital-2", "was shut out by the rule", "excluded: the same as hospital-1"],
        ["6", "hospital-2", "was shut out by the rule", "excluded: the same as hospital-2"],
        ["7", "hospital-2", "sent its update", "reinstated: reputation 0.61"],
    ]


def test_remarks_never_crowd_out_the_updates_that_were_not_used(tmp_path):
    folder = run_folder(tmp_path / "demo", hospitals=20, byzantine=0, rounds=30)
    rounds = [
        replace(
            report,
            hospitals=tuple(
                replace(own, state=HospitalState.REPORTED, reason=f"remark {'ab'[report.round_number % 2]}")
                for own in report.hospitals
            ),
        )
        for report in read_run(folder).rounds
    ]
    *others, last = rounds[-1].hospitals
    out = replace(last, state=HospitalState.HOSTILE, reason="excluded: at the very end")
    write_tables(folder, [*rounds[:-1], replace(rounds[-1], hospitals=(*others, out))])
    page = write_report(folder).read_text(encoding="utf-8")
    assert "400 of 600 events" in page
    shown = re.findall(r"<tr><td>(\d+)</td><th scope=\"row\">hospital-(\d+)</th>", page)
    assert len(shown) == 400
    assert shown[-1] == ("30", "19")
    assert [int(number) for number, _ in shown] == sorted(int(number) for number, _ in shown)


def test_no_page_is_wider_than_a_phone(tmp_path, telephone):
    long_names = run_folder(
        tmp_path / "long", hospitals=30, byzantine=9, rounds=40, prefix="department-of-radiology-" * 4
    )
    many_classes = run_folder(tmp_path / "many", classes=tuple(f"class {label}" for label in range(10)), hospitals=4)
    crowd = scored_folder(
        tmp_path / "crowd", hospitals=30, byzantine=9, rounds=70, prefix="department-of-radiology-" * 4
    )
    runs = [long_names, many_classes, crowd]
    pages = [*map(write_report, runs), write_comparison(tmp_path, comparison_rows())]
    for page in pages:
        telephone.goto(page.as_uri())
        assert telephone.evaluate("document.documentElement.scrollWidth") <= 390, page


def test_the_page_is_dark_where_the_reader_asks_for_dark(tmp_path, page):
    page.goto(write_report(run_folder(tmp_path / "demo", rounds=2)).as_uri())
    lightness = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        lightness[scheme] = int(re.findall(r"\d+", colour)[0])
    assert lightness["light"] > 200
    assert lightness["dark"] < 60


def test_names_from_outside_stay_text_in_the_page(tmp_path, page):
    script = "<script>document.title='owned'</script>"
    folder = run_folder(tmp_path / "demo", classes=(script, "a<b>&\"'"), prefix=f"{script}<img src=x>", rounds=3)
    rounds = scored(read_run(folder).rounds)
    first, *others = rounds[0].hospitals
    spoken = replace(rounds[0], hospitals=(replace(first, reason=script), *others))
    write_tables(folder, [spoken, *rounds[1:]])
    path = write_report(folder)
    page.goto(path.as_uri())

    assert page.title() == "demo · fedplatform"
    assert page.locator("script").count() == 0
    assert page.locator("img").count() == 6
    assert cells(page, "#hospitals")[0][0] == f"{script}<img src=x>-0"
    assert [row[0] for row in cells(page, "#confusion")] == [script, "a<b>&\"'"]


def test_a_hundred_hospitals_and_fifty_rounds_make_a_page_that_mail_can_carry(tmp_path):
    path = write_report(run_folder(tmp_path / "large", hospitals=100, byzantine=30, rounds=50))
    assert path.stat().st_size < 3_000_000
    path = write_report(scored_folder(tmp_path / "scored", hospitals=100, byzantine=30, rounds=50))
    assert path.stat().st_size < 6_000_000


def test_two_hospitals_one_round_no_attack_and_no_samples_are_a_run_too(tmp_path, page):
    folder = run_folder(tmp_path / "small", hospitals=2, byzantine=0, rounds=1)
    (folder / "samples.npz").unlink()
    page.goto(write_report(folder).as_uri())

    assert "all honest" in page.locator("h1").inner_text()
    assert "the rule shut nobody out" in page.locator("h1").inner_text()
    body = page.locator("main").inner_text()
    assert "every hospital reported in every round" in body
    assert "The server kept none." in body
    assert [row[0] for row in cells(page, "#confusion")] == ["class 0", "class 1"]


def test_a_run_whose_loss_explodes_and_whose_accuracy_is_unknown_can_still_be_drawn(tmp_path):
    folder = run_folder(tmp_path / "wild", rounds=4)
    wild = [
        replace(report, loss=loss, accuracy=math.nan, auc=math.nan)
        for report, loss in zip(read_run(folder).rounds, (0.5, 1e6, math.inf, math.nan), strict=True)
    ]
    write_tables(folder, wild)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Loss (logarithmic scale)" in page
    assert "accuracy –" in page
    assert not re.search(r'(?:d|x|y|cx|cy|x1|y1)="[^"]*(?:nan|inf)', page)


def with_states(run_rounds: tuple[RoundReport, ...], shut_out: set[str]) -> list[RoundReport]:
    return [
        replace(
            report,
            hospitals=tuple(
                replace(own, state=HospitalState.HOSTILE if own.hospital_id in shut_out else HospitalState.REPORTED)
                for own in report.hospitals
            ),
        )
        for report in run_rounds
    ]


@pytest.mark.parametrize(
    ("byzantine", "shut_out", "verdict"),
    [
        (0, set(), "the rule shut nobody out."),
        (0, {"hospital-1"}, "the rule shut out hospital-1, though nobody lied."),
        (2, set(), "the rule shut nobody out, so 2 attackers took part."),
        (1, {"hospital-3"}, "the rule shut out hospital-3, exactly the 1 attacker."),
        (2, {"hospital-0", "hospital-3"}, "hospital-0 and hospital-3: 1 of the 2 attackers and 1 honest hospital."),
        (2, {"hospital-3"}, "the rule shut out hospital-3: 1 of the 2 attackers and nobody else."),
    ],
)
def test_the_headline_says_whether_those_shut_out_were_the_attackers(tmp_path, byzantine, shut_out, verdict):
    folder = run_folder(tmp_path / "demo", hospitals=4, byzantine=byzantine, rounds=3)
    write_tables(folder, with_states(read_run(folder).rounds, shut_out))
    assert verdict in write_report(folder).read_text(encoding="utf-8")


def test_missing_numbers_come_back_as_nan(tmp_path):
    folder = run_folder(tmp_path / "demo")
    frame = pd.read_parquet(folder / "hospitals.parquet")
    frame.to_parquet(folder / "hospitals.parquet")  # pandas writes NaN as null
    assert pq.read_table(folder / "hospitals.parquet")["accuracy"].null_count > 0
    unknown = {own.hospital_id for own in read_run(folder).hospitals if math.isnan(own.last.accuracy)}
    assert unknown == {"hospital-7", "hospital-8", "hospital-9"}


FIGURE = st.floats(allow_infinity=False) | st.just(math.nan)
OPTIONAL = [field.name for field in fields(HospitalRecord) if isinstance(field.default, float)]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.fixed_dictionaries(dict.fromkeys(OPTIONAL, FIGURE)), min_size=1, max_size=4))
def test_what_a_rule_thinks_of_hospitals_survives_the_disk_bit_for_bit(judgements):
    with tempfile.TemporaryDirectory() as place:
        folder = run_folder(Path(place) / "demo", hospitals=len(judgements), byzantine=1, rounds=1)
        (report,) = read_run(folder).rounds
        records = zip(report.hospitals, judgements, strict=True)
        report = replace(report, hospitals=tuple(replace(own, **judgement) for own, judgement in records))
        RunFolder(folder).write_reports([report])
        (again,) = read_run(folder).rounds
        assert str(asdict(again)) == str(asdict(report))


def test_a_run_from_before_trust_was_scored_is_still_read(tmp_path):
    folder = scored_folder(tmp_path / "demo", rounds=3)
    table = pq.read_table(folder / "hospitals.parquet")
    assert set(OPTIONAL) < set(table.column_names)
    pq.write_table(table.drop_columns(OPTIONAL), folder / "hospitals.parquet")
    records = [own for report in read_run(folder).rounds for own in report.hospitals]
    assert len(records) == 30
    assert records[9].norm == 9.5
    assert all(math.isnan(getattr(own, name)) for own in records for name in OPTIONAL)
    assert "<h2>Trust over rounds</h2>" not in write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["experiment.yaml", "rounds.parquet", "hospitals.parquet"])
def test_a_folder_without_its_tables_is_refused_by_name(tmp_path, name):
    folder = run_folder(tmp_path / "demo")
    (folder / name).unlink()
    with pytest.raises(ReportError, match=rf"lacks {name}$"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_broken_files_are_refused_in_one_line(tmp_path):
    whole = run_folder(tmp_path / "whole", rounds=2)
    broken = {
        "experiment.yaml": (b"name: [", "is no YAML"),
        "rounds.parquet": (b"PAR1 but not really", "is no readable Parquet file"),
        "hospitals.parquet": ((whole / "rounds.parquet").read_bytes(), "lacks the columns hospital_id"),
        "samples.npz": (b"nothing", "holds images, labels, probabilities and classes"),
    }
    for name, (content, rule) in broken.items():
        folder = tmp_path / name.replace(".", "_")
        shutil.copytree(whole, folder)
        (folder / name).write_bytes(content)
        with pytest.raises(ReportError, match=rule) as caught:
            write_report(folder)
        assert "\n" not in str(caught.value)


def test_the_comparison_marks_the_best_defence_and_no_reference(tmp_path, page):
    page.goto(write_comparison(tmp_path, comparison_rows()).as_uri())

    tables = page.locator("table").all()
    assert len(tables) == 2
    assert rendered(tables[0], "caption") == ["br35h, group_safe+dirichlet_0.5: 10 hospitals, 3 attackers, 15 rounds"]
    best = rendered(tables[0], ".best")
    assert best == ["95.0 ± 1.0 ★\nn = 3", "90.0 ± 1.0 ★\nn = 3", "80.0 ± 1.0 ★\nn = 3"]
    last = [row[-1] for row in (rendered(row, "td") for row in tables[0].locator("tbody tr").all())]
    assert last == ["50.0\nsign_flip", "70.0\nalie", "80.0\nalie", "–"]
    link = page.locator("a[download]").get_attribute("href")
    csv = base64.b64decode(link.split(",", 1)[1]).decode()
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(csv)), comparison_rows())


def test_the_comparison_in_markdown_reads_like_the_page():
    lines = comparison_markdown(comparison_rows()).splitlines()
    assert lines[0].startswith(
        "br35h, group_safe+dirichlet_0.5: 10 hospitals, 3 attackers, 15 rounds; accuracy in percent"
    )
    assert lines[2:] == [
        "| rule | none | sign_flip | alie | worst |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| mean | **95.0 ± 1.0** | 50.0 ± 1.0 | 60.0 ± 1.0 | 50.0 (sign_flip) |",
        "| multi_krum | 94.0 ± 1.0 | **90.0 ± 1.0** | 70.0 ± 1.0 | 70.0 (alie) |",
        "| median | 93.0 ± 1.0 | 88.0 ± 1.0 | **80.0 ± 1.0** | 80.0 (alie) |",
        "| nearest_neighbour | 99.0 (n=1) | – | – | – |",
    ]
    assert "macro-F1 in percent" in comparison_markdown(comparison_rows(), metric="macro_f1")


def test_the_success_of_backdoors_has_a_table_of_its_own_in_which_less_is_better(tmp_path):
    planted = comparison_rows().replace({"attack": {"alie": "backdoor"}})
    success = {"mean": 0.9, "multi_krum": 0.2, "median": 0.4}
    planted["attack_success"] = planted["rule"].map(success).where(planted["attack"] == "backdoor")
    lines = comparison_markdown(planted).splitlines()
    start = next(number for number, line in enumerate(lines) if "attack success in percent" in line)
    assert lines[start + 2 :] == [
        "| rule | backdoor | worst |",
        "| --- | ---: | ---: |",
        "| mean | 90.0 ± 0.0 | 90.0 (backdoor) |",
        "| multi_krum | **20.0 ± 0.0** | 20.0 (backdoor) |",
        "| median | 40.0 ± 0.0 | 40.0 (backdoor) |",
    ]
    assert "<h2>Attack success" in write_comparison(tmp_path, planted).read_text()
    assert "ttack success" not in comparison_markdown(planted.assign(attack_success=np.nan))


def test_the_page_of_a_run_says_how_often_the_backdoor_opened(tmp_path):
    folder = run_folder(tmp_path / "demo")
    assert "ttack success" not in write_report(folder).read_text(encoding="utf-8")
    rounds = [replace(report, attack_success=0.75) for report in read_run(folder).rounds]
    write_tables(folder, rounds)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "<dt>Attack success of the backdoor</dt><dd>75.0%</dd>" in page
    assert "the backdoor opened for 75.0% of stamped scans" in page


def test_runs_of_different_settings_never_share_a_table():
    ten = comparison_rows()
    more_attackers = ten[ten["attack"] != "none"].assign(byzantine=4)
    longer = ten[ten["rule"] == "mean"].assign(rounds=30)
    other = ten[ten["rule"] == "nearest_neighbour"].assign(split="random")
    text = comparison_markdown(pd.concat([ten, more_attackers, longer, other], ignore_index=True))
    titles = [line.split(";")[0] for line in text.splitlines() if line.startswith("br35h")]
    assert titles == [
        "br35h, group_safe+dirichlet_0.5: 10 hospitals, 3 attackers, 15 rounds",
        "br35h, group_safe+dirichlet_0.5: 10 hospitals, 4 attackers, 15 rounds",
        "br35h, group_safe+dirichlet_0.5: 10 hospitals, 3 attackers, 30 rounds",
        "br35h, random: references only",
    ]


def test_a_comparison_that_would_mislead_is_refused():
    table = comparison_rows()
    with pytest.raises(ReportError, match="got no seed, auc"):
        comparison_markdown(table.drop(columns=["seed", "auc"]))
    with pytest.raises(ReportError, match=r"accuracy is a share in \[0, 1\], got 93.0 in row 0"):
        comparison_markdown(table.assign(accuracy=93.0))
    with pytest.raises(ReportError, match="counts every run once"):
        comparison_markdown(pd.concat([table, table.head(1)], ignore_index=True))
    with pytest.raises(ReportError, match="empty"):
        comparison_markdown(table.head(0))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_the_table_shows_the_mean_and_the_sample_deviation_over_seeds(accuracies):
    one = comparison_rows().head(1)
    table = pd.concat([one.assign(seed=seed, accuracy=value) for seed, value in enumerate(accuracies)])
    expected = f"{100 * np.mean(accuracies):.1f} ± {100 * np.std(accuracies, ddof=1):.1f}"
    shown = re.search(r"over (\d+) seeds[^|]*[^*]*\*\*(.+) ± (.+)\*\*", comparison_markdown(table))
    assert shown
    assert float(shown[2]) == pytest.approx(float(expected.split(" ± ")[0]), abs=0.11)
    assert float(shown[3]) == pytest.approx(float(expected.split(" ± ")[1]), abs=0.11)
    assert int(shown[1]) == len(accuracies)
