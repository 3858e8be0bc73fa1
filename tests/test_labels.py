"""Settling label states: what each policy makes of -1 and of silence."""

import pandas as pd
import pytest
from conftest import ROOT

from chexreason import labels

NAN = float("nan")

STATES = pd.DataFrame({"Edema": [1.0, 0.0, -1.0, NAN], "Fracture": [NAN, NAN, NAN, NAN]})

SETTLED = {
    "u_zeros": [1.0, 0.0, 0.0, 0.0],
    "u_ones": [1.0, 0.0, 1.0, 0.0],
    "u_ignore": [1.0, 0.0, NAN, 0.0],
}


@pytest.mark.parametrize("policy", labels.POLICIES)
def test_each_policy_settles_the_four_states_as_its_name_says(policy):
    settled = labels.apply_policy(STATES, policy)["Edema"].tolist()
    assert [str(value) for value in settled] == [str(value) for value in SETTLED[policy]]


@pytest.mark.parametrize("policy", labels.POLICIES)
def test_a_label_the_source_never_speaks_of_stays_unknown(policy):
    assert labels.apply_policy(STATES, policy)["Fracture"].isna().all()


def test_settling_leaves_what_was_stated_alone():
    before = STATES.copy()
    labels.apply_policy(STATES, "u_ones")
    pd.testing.assert_frame_equal(STATES, before)


def test_an_unknown_policy_is_refused_by_name():
    with pytest.raises(ValueError, match=r"u_guess.*u_zeros, u_ones, u_ignore"):
        labels.apply_policy(STATES, "u_guess")


def test_positives_come_in_the_order_of_chexpert_and_unknown_is_not_positive():
    row = pd.Series({name: 0.0 for name in labels.CHEXPERT14} | {"Support Devices": 1.0, "Edema": 1.0, "Fracture": NAN})
    assert labels.positives(row) == ("Edema", "Support Devices")


def test_the_label_sets_are_chexperts_fourteen_and_the_nine_of_table_6():
    assert len(set(labels.CHEXPERT14)) == 14
    assert len(labels.NIH9) == 9 and set(labels.NIH9) < set(labels.CHEXPERT14)
    unstated = {"Enlarged Cardiomediastinum", "Lung Opacity", "Fracture", "Support Devices"}  # NIH has no such label
    left_out = {"Pleural Effusion"}  # the paper leaves it out although NIH has it
    assert set(labels.CHEXPERT14) - set(labels.NIH9) == unstated | left_out
    assert [name for name in labels.CHEXPERT14 if name not in unstated] == list(labels.NIH10)


def test_the_competition_is_about_five_labels_that_chexpert_and_nih_both_state():
    assert set(labels.COMPETITION5) == {"Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"}
    for names in labels.LABEL_SETS.values():
        assert list(names) == [name for name in labels.CHEXPERT14 if name in names]  # one order in every table


def one(**states) -> pd.DataFrame:
    """A film that shows nothing but `states`, spaces written as underscores."""
    given = {name.replace("_", " "): state for name, state in states.items()}
    return pd.DataFrame([dict.fromkeys(labels.CHEXPERT14, 0.0) | given])


@pytest.mark.parametrize("child", ["Edema", "Consolidation", "Pneumonia", "Atelectasis", "Lung_Lesion"])
def test_closing_upwards_makes_a_lung_opacity_of_what_is_one(child):
    pd.testing.assert_frame_equal(labels.add_parent_labels(one(**{child: 1.0})), one(**{child: 1.0}, Lung_Opacity=1.0))


def test_closing_upwards_makes_an_enlarged_cardiomediastinum_of_a_large_heart():
    closed = labels.add_parent_labels(one(Cardiomegaly=1.0, Enlarged_Cardiomediastinum=NAN))
    pd.testing.assert_frame_equal(closed, one(Cardiomegaly=1.0, Enlarged_Cardiomediastinum=1.0))


def test_closing_upwards_takes_no_hint_from_a_parent_an_uncertain_child_or_silence():
    for states in (one(Lung_Opacity=1.0), one(Edema=-1.0), one(Edema=NAN, Lung_Opacity=NAN), one(Pneumothorax=1.0)):
        pd.testing.assert_frame_equal(labels.add_parent_labels(states), states)


def test_closing_upwards_keeps_bool_predictions_bool_and_its_input_as_it_was():
    given = one(Edema=1.0).astype(bool)
    closed = labels.add_parent_labels(given)
    assert closed["Lung Opacity"].tolist() == [True] and not given["Lung Opacity"].any()
    assert set(closed.dtypes) == {given["Edema"].dtype}


def test_the_closures_are_those_that_chexperts_test_labels_obey():
    joint = ROOT.parent / "shared" / "facts" / "prevalence" / "chexpert_test_joint.csv"
    if not joint.exists():
        pytest.skip("the joint frequencies of CheXpert's test labels are not beside the project")
    shares = pd.read_csv(joint, index_col=0)
    for parent, children in labels.CLOSURES.items():
        always = [name for name in shares if name != parent and shares.at[name, parent] == shares.at[name, name]]
        assert set(always) == set(children)
