"""The stand-ins can be forged again, and what they learn from says what is on the pictures."""

import pytest
from conftest import ROOT

from chexreason import answers, config, models, prompts
from chexreason.data.phantom import hospitals
from chexreason.labels import positives
from chexreason.stand_ins import build
from chexreason.workflow.notebook import execute


@pytest.fixture(scope="module")
def films():
    return build.pretraining_films(300, 3)


def test_pretraining_films_are_of_hospital_a_with_its_labels_and_more_rare_findings_than_occur(films):
    natural = hospitals.film_table(3000, 3)
    stated = natural.set_index("film").loc[films["film"], build.LABELS] == 1.0
    assert (films[build.LABELS].astype(bool).to_numpy() == stated.to_numpy()).all()
    assert films["Fracture"].mean() > 2 * (natural["Fracture"] == 1.0).mean()
    assert set(films["source"]) == {"phantom-a"}


def test_captions_name_every_label_of_the_film(films):
    for turn in build.film_turns(films.head(50), 0):
        assert answers.read(turn.answer).labels == positives(films.loc[turn.picture])


def test_words_come_back_as_they_went_in_and_a_prompt_is_one_token(films):
    turns = build.dictations(films, 0) + build.choice_turns(films, 0)
    words = build.gemma_processor(build.texts(turns)).tokenizer
    strange = ["Edema, edema; 12. Nothing:\n<think>\u202e Ödem</think>", "<solution></solution>"]
    for text in [*strange, *(turn.answer for turn in turns), *map(prompts.load, build.PROMPTS)]:
        assert words.decode(words(text).input_ids) == text
    assert {len(words(prompts.load(name)).input_ids) for name in build.PROMPTS} == {1}
    assert {len(words(label).input_ids) for label in build.LABELS if label in str(turns)} == {1}


def test_every_form_of_answer_is_dictated_and_reads_back(films):
    told = {name: turn for turn in build.dictations(films, 0) for name in [turn.question.partition(":")[0]]}
    assert set(told) == set(build.DICTATIONS.values())
    for form, start in build.DICTATIONS.items():
        named = told[start].question.removeprefix(f"{start}: ").removesuffix(".").split(", ")
        assert answers.read_strict(told[start].answer, form).labels == tuple(filter(None, named))


def test_choices_are_answered_with_what_is_there_and_asked_for(films):
    for turn in build.choice_turns(films.head(50), 0):
        asked = turn.question.removeprefix("Which of these: ").removesuffix("?").split(", ")
        there = [name for name in asked if films.loc[turn.picture, name]]
        assert turn.answer == f"{', '.join(there) or 'None'}."


def test_places_lie_inside_the_boxes(films):
    row = films.index[(films["Lung Lesion"] == 1.0) & hospitals.truth(films)["Lung Lesion"]][0]
    (box,) = [box for box in hospitals.boxes(films.loc[row, "recipe"]) if box.finding == "Lung Lesion"]
    inside = build.places(films.loc[[row]])[0, :, build.LABELS.index("Lung Lesion")].reshape(8, 8)
    middle = int((box.y0 + box.y1) / 2 * 8), int((box.x0 + box.x1) / 2 * 8)
    assert inside[middle] and not inside.all()


@pytest.mark.soak
def test_notebook_0_forges_both_stand_ins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"films": 100, "vision_epochs": 1, "drawings": 16, "seed": 1, "folder": "forged"}
    execute(ROOT / "notebooks" / "0_stand_ins.ipynb", tmp_path / "out.ipynb", small)
    for name in ("medgemma", "qwen"):
        model = config.Model(name=name, path=str(tmp_path / "forged" / name), dtype="float32")
        forged, shipped = (
            models.load_base(model),
            models.load_base(model.model_copy(update={"path": f"stand-in:{name}"})),
        )
        assert type(forged) is type(shipped)
        assert forged.config.vision_config == shipped.config.vision_config
