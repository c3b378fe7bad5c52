"""Tables in any state, shares in any: the numbers of plain arithmetic, or one sentence, and the table as it was."""
from functools import cache
from itertools import product
from unittest.mock import patch

import numpy
import pandas
from hypothesis import given, settings
from hypothesis import strategies as st
from test_any_input import CLASSES, features, labels, result

import clip_adapter_lite as cal
from clip_adapter_lite.experiments import reference as known

quick = settings(max_examples=60, deadline=None)
KEY = ["dataset", "backbone", "method", "shots"]
FAULTS = ["", "", "", "", "nan", "inf", "words", "no column", "empty", "list", "none", "twice", "lonely", "big numbers"]
HARMLESS = {"shuffled": lambda t: t.sample(frac=1, random_state=0), "other rows": lambda t: t.set_index(t.index + 9),
            "categories": lambda t: t.astype({"dataset": "category", "method": "category"}),
            "whole types": lambda t: t.astype({"shots": "int8", "seed": "uint32"}),
            "half": lambda t: t.astype({"accuracy": "float32"}), "objects": lambda t: t.astype({"shots": object}),
            "more": lambda t: t.assign(mine="x"), "odd names": lambda t: t.replace({"dataset": {"a": "ä, \"b\"\n"}}),
            "no backbone": lambda t: t.assign(backbone=numpy.nan), "as it is": lambda t: t}


@st.composite
def tables(draw):
    """(what is handed over, its honest rows or None): two methods, up to three banks, shots and seeds."""
    banks, seeds = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    rows = list(product(["a", "b", "c"][:banks], ["tower"], ["X", "Y"], [1, 4], range(1, seeds + 1)))
    table = pandas.DataFrame(rows, columns=[*KEY, "seed"])
    chance = numpy.random.default_rng(draw(st.integers(0, 9)))
    table = table.assign(accuracy=chance.random(len(table)).round(4), labelled=table["shots"] + 4)
    table = draw(st.sampled_from(list(HARMLESS.values())))(table)
    fault = draw(st.sampled_from(FAULTS))
    broken = table.copy()
    if fault in ("nan", "inf"):
        broken.iloc[draw(st.integers(0, len(table) - 1)), table.columns.get_loc("accuracy")] = float(fault)
    if fault == "words":
        broken["accuracy"] = ["many"] * len(table)
    if fault == "big numbers":
        broken["accuracy"] = broken["accuracy"].astype(object)  # as a frame of a hand-made dict may be
    other = {"no column": table.drop(columns=draw(st.sampled_from(["dataset", "shots", "accuracy", "method"]))),
             "empty": table.iloc[:0], "list": table.values.tolist(), "none": None,
             "twice": pandas.concat([table, table.iloc[:1]]), "lonely": table.iloc[1:]}
    return other.get(fault, broken), fault, table


def unchanged(table, function, *given, **options):
    """`result`, and what was handed over is as it was."""
    before = table.copy() if isinstance(table, pandas.DataFrame) else None
    found = result(function, table, *given, **options)
    if before is not None:
        pandas.testing.assert_frame_equal(table, before)
    return found


@given(tables())
@quick
def test_means_and_deviations_are_those_of_a_loop(drawn):
    table, fault, honest = drawn
    found = unchanged(table, cal.summarise)
    if fault not in ("", "twice", "lonely", "big numbers"):  # a mean needs no partner and no unique seed
        assert found is None
        return
    groups = {}
    for row in table.to_dict("records"):
        groups.setdefault(tuple(map(str, (row[name] for name in KEY))), []).append(float(row["accuracy"]))
    assert len(found) == len(groups)
    for row in found.to_dict("records"):
        values = groups[tuple(map(str, (row[name] for name in KEY)))]
        numpy.testing.assert_allclose(row["mean"], numpy.mean(values), rtol=1e-6)
        assert row["count"] == len(values) and row["labelled"] == int(row["shots"]) + 4
        if len(values) > 1:
            numpy.testing.assert_allclose(row["std"], numpy.std(values, ddof=1), rtol=1e-4, atol=1e-7)


@given(tables(), st.sampled_from([("X", "Y"), ("Y", "X"), ("X", "X"), ("X", "Z"), ("X", None), (1, "Y")]),
       st.sampled_from(["accuracy", "accuracy", "accuracy", "labelled", "method", "seconds", None]),
       st.sampled_from([200, 200, numpy.int64(50), 0, 2.5, "9"]))
@quick
def test_a_difference_is_the_mean_over_pairs_and_turns_with_its_names(drawn, names, metric, resamples):
    table, fault, honest = drawn
    found = unchanged(table, cal.paired_bootstrap, *names, metric=metric, resamples=resamples)
    if names == ("X", "X") and fault:  # rows of the other method are not looked at
        return
    sound = fault in ("", "big numbers") or metric == "labelled" and (
        fault in ("nan", "inf", "words") or fault == "no column" and "accuracy" not in table)
    if not sound or not {*names} <= {"X", "Y"} or metric not in ("accuracy", "labelled") or resamples in (0, 2.5, "9"):
        if fault != "big numbers":
            assert found is None
        return
    if found is None:  # numbers kept as objects may be refused
        assert fault == "big numbers"
        return
    wide = honest.astype({"dataset": str, "method": str}).pivot_table(
        index=["dataset", "shots", "seed"], columns="method", values=metric, observed=True)
    if names == ("X", "X"):  # a method is neither above nor below itself
        assert (found.difference, found.low, found.high) == (0, 0, 0)
    numpy.testing.assert_allclose(found.difference, (wide[names[0]] - wide[names[1]]).mean(), atol=1e-6)
    assert found.low <= found.difference + 1e-9 and found.difference <= found.high + 1e-9
    assert found.runs == len(wide) and found.banks == honest["dataset"].nunique()
    turned = cal.paired_bootstrap(table, *names[::-1], metric=metric, resamples=resamples)
    assert (turned.low, turned.high) == (-found.high, -found.low)


@given(features(12, CLASSES), labels(12), st.sampled_from([1, 4, numpy.int64(15), 0, 2.5, "4", None]))
@quick
def test_a_reliability_curve_is_that_of_a_loop(x, y, bins):
    shares = x[0]
    if x[1] is not None:
        shares = numpy.exp(x[1]) / numpy.exp(x[1]).sum(1, keepdims=True)
    found = result(cal.reliability_curve, shares, y[0], bins)
    if x[1] is None or y[1] is None or bins in (0, 2.5, "4", None):
        assert found is None
        return
    sure, right = shares.max(1), shares.argmax(1) == y[1]
    groups = [(sure > m / bins) & (sure <= (m + 1) / bins) for m in range(int(bins))]
    rows = [(sure[g].mean(), right[g].mean(), g.sum()) for g in groups if g.any()]
    numpy.testing.assert_allclose(found[["confidence", "accuracy", "count"]].to_numpy(float), rows, atol=1e-9)


@cache
def reference():
    return cal.reference()


@st.composite
def parts(draw):
    """(what is handed over of the reference, whether it can be run again)."""
    rows = reference().sample(3, random_state=draw(st.integers(0, 20)))
    fault = draw(st.sampled_from(["", "", "", "other rows", "shuffled", "reseeded", "unknown bank", "unknown method",
                                  "no column", "no rows", "list", "none"]))
    other = {"other rows": lambda: rows.reset_index(drop=True), "shuffled": lambda: rows.iloc[::-1],
             "reseeded": lambda: rows.assign(seed=rows["seed"].astype(object)),
             "unknown bank": lambda: rows.assign(dataset="elsewhere"),
             "unknown method": lambda: rows.assign(method="Magic"),
             "no column": lambda: rows.drop(columns=draw(st.sampled_from(["dataset", "method", "shots", "seed"]))),
             "no rows": lambda: rows.iloc[:0], "list": lambda: rows.values.tolist(), "none": lambda: None}
    return other.get(fault, lambda: rows)(), fault in ("", "other rows", "shuffled", "reseeded")


@given(parts())
@settings(max_examples=40, deadline=None)
def test_rows_are_computed_again_in_their_order(drawn):
    rows, sound = drawn

    def fake(runs, jobs):  # what is held to account here are the rows; that the numbers are the same, test_reference does
        return [{"accuracy": (len(run.bank.dataset), run.shots, run.seed)} for run in runs]

    with patch.object(known, "execute", fake):
        found = unchanged(rows, cal.recompute)
    assert (found is not None) == sound
    if sound:
        assert list(found.index) == list(rows.index)
        assert found["recomputed"].tolist() == [(len(r.dataset), r.shots, r.seed) for r in rows.itertuples()]
