"""What is written is read back, and awkward replies are read one way only."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chexreason.answers import ONLY_LABEL, OPENING, REFUSALS, SYNONYMS, Answer, read, read_strict, write
from chexreason.labels import CHEXPERT14

TAGS = ("<think>", "</think>", "<solution>", "</solution>")
reasonings = st.text().filter(lambda text: not any(tag in text for tag in TAGS))
label_sets = st.sets(st.sampled_from(CHEXPERT14)).map(lambda names: tuple(n for n in CHEXPERT14 if n in names))


@given(reasonings, label_sets)
def test_a_written_answer_reads_back_strictly(reasoning, labels):
    assert read_strict(write(Answer(reasoning, labels))) == Answer(reasoning, labels)


@given(reasonings, label_sets)
def test_a_written_answer_reads_back_leniently(reasoning, labels):
    reading = read(write(Answer(reasoning, labels)))
    assert (reading.labels, reading.reasoning) == (labels, reasoning.strip())
    assert reading.failed == (not labels) and (reading.duplicates, reading.unknown) == (0, 0)


@given(label_sets)
def test_an_only_label_answer_reads_back_in_its_own_form_and_in_no_other(labels):
    text = write(Answer("", labels), ONLY_LABEL)
    assert text == f"<solution>{', '.join(labels)}</solution>"
    assert (read_strict(text, ONLY_LABEL), read_strict(text)) == (Answer("", labels), None)
    assert read_strict(write(Answer("", labels)), ONLY_LABEL) is None
    assert read(text)[:5] == (labels, not labels, 0, 0, "")


OTHER_TAGS = ("<answer>", "</answer>", "<thinking>", "</thinking>")
DEBRIS = (",", ";", " ", "\n", " and ", "- ", "```", "{", "}", '"conclusion": ', "the heart is large", "é", "<", ">")
pieces = st.lists(st.sampled_from([*TAGS, *OTHER_TAGS, *CHEXPERT14, *DEBRIS]))


@given(pieces.map("".join) | st.text())
def test_any_text_can_be_read_and_what_is_strict_is_not_failed_unless_empty(text):
    reading, strict = read(text), read_strict(text)
    assert all(name in CHEXPERT14 for name in reading.labels) and len(set(reading.labels)) == len(reading.labels)
    assert reading.failed == (not reading.labels)
    if strict is not None:
        assert strict.labels == reading.labels
    assert not reading.refused or reading.failed


@given(label_sets, pieces.map("".join))
def test_a_closed_block_at_the_end_is_read_whatever_precedes_it(labels, before):
    if max(before.rfind("<think>"), before.rfind("<thinking>")) > max(map(before.rfind, ("</think>", "</thinking>"))):
        before += "</think>"  # a block in an open thought is no answer
    assert read(f"{before}<solution>{', '.join(labels)}</solution>").labels == labels


@given(pieces.map("".join))
def test_white_space_around_a_reply_changes_nothing(text):
    assert read_strict(f" \n{text}\t ") == read_strict(text)


@pytest.mark.parametrize(
    "answer",
    [
        Answer("a <think> inside", ("Edema",)),
        Answer("a </solution> inside", ("Edema",)),
        Answer("", ("Infiltration",)),
        Answer("", ("Effusion",)),
        Answer("", ("Edema", "Edema")),
        Answer("", ("Fracture", "Edema")),
    ],
)
def test_an_answer_that_would_not_read_back_is_not_written(answer):
    with pytest.raises(ValueError, match="would not read back"):
        write(answer)


def test_an_only_label_answer_has_no_place_for_reasoning():
    with pytest.raises(ValueError, match="be empty in only_label"):
        write(Answer("the heart is large", ("Cardiomegaly",)), ONLY_LABEL)


A, C, E, F, L, N, P, S = (
    "Atelectasis",
    "Cardiomegaly",
    "Edema",
    "Fracture",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Support Devices",
)
FULL = "<think>r</think><solution>{}</solution>"
FENCED = '```json\n{"analysis": "r", "conclusion": ["Edema", "Fracture"]}\n```'

NV_REASON = """<think> We begin with the quality of this AP film, which is rotated to the left.

I want to look at the devices first. A line ends near the right atrium; I don't see an endotracheal tube.

Now the lungs: no pneumothorax, no effusion, and a band of density at the left base. The heart is wide.

In summary, these findings need to be seen in the light of the clinical question. </think>
<answer> {} </answer>"""
"""Our words in the shape of its replies: paragraphs in one thought, a line feed, labels between spaces."""

# what is awkward, reply, labels read strictly (None: not the published form), labels read by evaluation, duplicates,
# unknown names
REPLIES = [
    # the form itself
    ("nothing", FULL.format("Edema"), (E,), (E,), 0, 0),
    ("two labels", FULL.format("Edema, Fracture"), (E, F), (E, F), 0, 0),
    ("white space around the blocks", "  \n<think>r</think>\n\n<solution>Edema</solution>\n", (E,), (E,), 0, 0),
    ("an empty thought", "<think></think><solution>Edema</solution>", (E,), (E,), 0, 0),
    ("lines", "<think>a\nb</think>\n<solution>\nEdema,\nFracture\n</solution>", (E, F), (E, F), 0, 0),
    ("an empty block", FULL.format(""), (), (), 0, 0),
    ("nothing but commas", FULL.format(" , ,"), (), (), 0, 0),
    ("None", FULL.format("None"), (), (), 0, 1),
    # names
    ("case and order", FULL.format("fracture, EDEMA"), (E, F), (E, F), 0, 0),
    ("two spaces", FULL.format("pleural  effusion"), (P,), (P,), 0, 0),
    ("no space", FULL.format("PleuralEffusion"), (P,), (P,), 0, 0),
    ("a name over two lines", FULL.format("Pleural\nEffusion"), (P,), (P,), 0, 0),
    ("a no-break space", FULL.format("Pleural\u00a0Effusion"), (P,), (P,), 0, 0),
    ("hyphen and underscore", FULL.format("pleural-effusion, support_devices"), (P, S), (P, S), 0, 0),
    ("a full stop", FULL.format("Edema, Fracture."), (E, F), (E, F), 0, 0),
    ("markdown emphasis", FULL.format("**Edema**, _Fracture_, `No Finding`"), (N, E, F), (N, E, F), 0, 0),
    ("a list of strings", FULL.format("[\"Edema\", 'Fracture']"), (E, F), (E, F), 0, 0),
    ("repeated names", FULL.format("Edema,Edema, edema"), (E,), (E,), 2, 0),
    ("a synonym repeats a name", FULL.format("Effusion, Pleural Effusion"), (P,), (P,), 1, 0),
    ("synonyms", FULL.format("Airspace opacity, pulmonary oedema, no findings"), (N, L, E), (N, L, E), 0, 0),
    ("empty places in the list", FULL.format("Edema,,Fracture,"), (E, F), (E, F), 0, 0),
    ("an unknown name alone", FULL.format("Infiltration"), (), (), 0, 1),
    ("unknown names", FULL.format("Edema, Infiltration, Hernia"), (E,), (E,), 0, 2),
    (
        "a kind of a label",
        FULL.format("Nodule, Pleural Thickening, Lung Lesion"),
        ("Lung Lesion",),
        ("Lung Lesion",),
        0,
        2,
    ),
    ("No Finding among findings", FULL.format("No Finding, Edema"), (N, E), (N, E), 0, 0),
    ("a denial of unclear reach", FULL.format("no Edema, Fracture"), None, (), 0, 0),
    ("a qualifier", FULL.format("Edema (mild), possible Fracture, Cardiomegaly?"), (), (), 0, 3),
    ("a sign after the name", FULL.format("Edema -, Fracture +"), (F,), (F,), 0, 0),
    ("a verdict after the name", FULL.format("Edema: no, Fracture: yes"), (F,), (F,), 0, 0),
    ("all fourteen", FULL.format(", ".join(CHEXPERT14)), CHEXPERT14, CHEXPERT14, 0, 0),
    ("other scripts, an invisible character", FULL.format("é, 肺, \u200b"), (), (), 0, 3),
    ("right-to-left text and its marks", FULL.format("\u202bEdema\u202c, وذمة"), (E,), (E,), 0, 1),
    ("NUL bytes and a byte order mark", FULL.format("\x00Ed\x00ema, \ufeffFracture"), (E, F), (E, F), 0, 0),
    ("a lone surrogate", FULL.format("Edema, \ud800"), (E,), (E,), 0, 1),
    # separators
    ("semicolons", FULL.format("Edema; Fracture"), (E, F), (E, F), 0, 0),
    ("lines without commas", FULL.format("Edema\nPleural Effusion\r\nFracture"), (E, P, F), (E, P, F), 0, 0),
    ("dashes as bullets", FULL.format("\n- Edema\n- Pleural Effusion\n"), (E, P), (E, P), 0, 0),
    ("stars as bullets", FULL.format("\n* Edema\n* **Fracture**\n"), (E, F), (E, F), 0, 0),
    ("dots as bullets, in one line", FULL.format("• Edema • Fracture"), (E, F), (E, F), 0, 0),
    ("numbers", FULL.format("1. Edema\n2) Fracture"), (E, F), (E, F), 0, 0),
    ("and", FULL.format("Cardiomegaly, Edema and Fracture"), (C, E, F), (C, E, F), 0, 0),
    ("a comma before and", FULL.format("Cardiomegaly, Edema, and Fracture."), (C, E, F), (C, E, F), 0, 0),
    ("a denial before and", FULL.format("no Edema and Fracture"), None, (), 0, 0),
    ("and beside what is no name", FULL.format("mild Edema and Fracture"), (), (), 0, 1),
    ("a code fence in the block", FULL.format("\n```text\nEdema\n```\n"), (E,), (E,), 0, 0),
    # almost the form
    ("a greeting", "Sure! " + FULL.format("Edema"), None, (E,), 0, 0),
    ("a farewell", FULL.format("Edema") + " Thank you.", None, (E,), 0, 0),
    ("words between the blocks", "<think>r</think> so <solution>Edema</solution>", None, (E,), 0, 0),
    ("labels first", "<solution>Edema</solution><think>r</think>", None, (E,), 0, 0),
    ("no thought", "<solution>Edema</solution>", None, (E,), 0, 0),
    ("a thought opened by the chat template", "r</think><solution>Edema</solution>", None, (E,), 0, 0),
    ("labels in the thought", "<think>r<solution>Edema</solution></think>", None, (E,), 0, 0),
    ("nested thoughts", "<think>r<think>r</think></think><solution>Edema</solution>", None, (E,), 0, 0),
    ("two thoughts", "<think>a</think><think>b</think><solution>Edema</solution>", None, (E,), 0, 0),
    ("tags in capitals", "<think>r</think><Solution>Edema</Solution>", None, (), 0, 0),
    ("the thought inside out", "</think>r<think><solution>Edema</solution>", None, (), 0, 0),
    ("the block inside out", "<think>r</think></solution>Edema<solution>", None, (), 0, 0),
    ("all in a code fence", f"```\n{FULL.format('Edema')}\n```", None, (E,), 0, 0),
    # several blocks: the last closed one counts
    ("two blocks", FULL.format("Edema") + "<solution>Fracture</solution>", None, (F,), 0, 0),
    ("a second block that is empty", FULL.format("Edema") + "<solution></solution>", None, (), 0, 0),
    ("a second block that is cut off", FULL.format("Edema") + "<solution>Frac", None, (E,), 0, 0),
    ("a block closed twice", FULL.format("Edema") + "\n</solution>", None, (E,), 0, 0),
    ("a block opened twice", "<think>r</think><solution>Edema<solution>Fracture</solution>", None, (F,), 0, 0),
    ("solution, then answer", FULL.format("Edema") + "<answer>Fracture</answer>", None, (F,), 0, 0),
    ("a block in a block", "<answer><solution>Edema</solution></answer>", None, (E,), 0, 0),
    ("a block in the published one", FULL.format("Fracture <answer>Edema</answer>"), (E, F), (E, F), 0, 0),
    ("a block that another tag closes", "<think>r</think><solution>Edema</answer>", None, (), 0, 0),
    # cut off, or no form at all
    ("cut off in the list", "<think>r</think><solution>Edema, Frac", None, (), 0, 0),
    ("cut off after a whole name", "<think>r</think><solution>Edema", None, (), 0, 0),
    ("cut off in the closing tag", "<think>r</think><solution>Edema</soluti", None, (), 0, 0),
    ("cut off in the thought", "<think>the heart is", None, (), 0, 0),
    ("cut off in a thought that concludes", "<think>Conclusion: Edema", None, (), 0, 0),
    ("a bare list", "Edema, Fracture", None, (), 0, 0),
    ("no text", "", None, (), 0, 0),
    ("white space", "   ", None, (), 0, 0),
    # how other models answer
    ("NV-Reason-CXR", "<think> The heart is large. </think>\n<answer> Cardiomegaly </answer>", None, (C,), 0, 0),
    (
        "NV-Reason-CXR in its own words",
        "<think>r</think><answer>Pleural effusion, No finding</answer>",
        None,
        (N, P),
        0,
        0,
    ),
    ("NV-Reason-CXR at length", NV_REASON.format("Atelectasis, Cardiomegaly, Support Devices"), None, (C, A, S), 0, 0),
    ("NV-Reason-CXR on a normal film", NV_REASON.format("No Finding"), None, (N,), 0, 0),
    ("NV-Reason-CXR in no known words", NV_REASON.format("No acute abnormality"), None, (), 0, 1),
    ("NV-Reason-CXR cut off in the thought", NV_REASON[:80], None, (), 0, 0),
    ("NV-Reason-CXR cut off in the answer", NV_REASON.format("Atelectasis, Cardiomegaly, Supp")[:-10], None, (), 0, 0),
    ("NV-Reason-CXR says more", "<think>r</think><answer>Support devices, Scoliosis</answer>", None, (S,), 0, 1),
    ("thinking", "<thinking>r</thinking><answer>Edema</answer>", None, (E,), 0, 0),
    ("reasoning", "<reasoning>r</reasoning><solution>Edema</solution>", None, (E,), 0, 0),
    ("analysis and conclusion as tags", "<analysis>r</analysis><conclusion>Edema</conclusion>", None, (E,), 0, 0),
    ("analysis and conclusion as JSON", '{"analysis": "r", "conclusion": "Edema"}', None, (E,), 0, 0),
    ("JSON in a code fence, with a list", FENCED, None, (E, F), 0, 0),
    ("JSON after a thought, between words", f"<think>r</think>Here:\n{FENCED}\nBye.", None, (E, F), 0, 0),
    ("two JSON objects", '{"conclusion": "Edema"} or {"conclusion": ["Fracture"]}', None, (F,), 0, 0),
    ("a JSON object, then other braces", f"{FENCED} Bye {{}}", None, (), 0, 0),
    ("JSON with lines in its texts", '{"Analysis": "a\nb", "Conclusion": "Edema,\nNodule"}', None, (E,), 0, 1),
    ("JSON with other keys", '{"findings": "r", "labels": "Edema"}', None, (), 0, 0),
    ("JSON with a verdict a label", '{"analysis": "r", "conclusion": {"Edema": true}}', None, (E,), 0, 0),
    ("JSON with numbers", '{"analysis": "r", "conclusion": [5, 12]}', None, (), 0, 0),
    ("JSON cut off", '{"analysis": "r", "conclusion": "Edema', None, (), 0, 0),
    ("JSON without quotes", "{analysis: the heart is large, conclusion: Cardiomegaly}", None, (C,), 0, 0),
    ("a Python dict", "{'analysis': 'r', 'conclusion': ['Edema', 'Fracture']}", None, (E, F), 0, 0),
    ("headings", "Analysis: r\nConclusion: Edema, Fracture.", None, (E, F), 0, 0),
    ("headings in markdown", "**Analysis:** r\n\n**Conclusion:**\n\n- Edema\n- Fracture\n\nBye.", None, (E, F), 0, 0),
    ("prose under a heading", "Conclusion: no pneumothorax, edema, or fracture.", None, (), 0, 0),
    ("prose in conclusion", "In conclusion: the film shows Edema.", None, (), 0, 0),
    ("a heading within the thought", "<think>Conclusion: Edema</think>It is late.", None, (), 0, 0),
    ("a heading and a block cut off", "Conclusion: Edema\n<solution>Edema, Frac", None, (), 0, 0),
]


@pytest.mark.parametrize(
    ("reply", "strict", "labels", "duplicates", "unknown"),
    [row[1:] for row in REPLIES],
    ids=[row[0] for row in REPLIES],
)
def test_awkward_replies(reply, strict, labels, duplicates, unknown):
    answer, reading = read_strict(reply), read(reply)
    assert (None if answer is None else answer.labels) == strict
    assert reading[:4] == (labels, not labels, duplicates, unknown)
    assert not reading.refused


# kind, solution, the labels affirmed; None: unreadable
SOLUTIONS = [
    # a denial governs what follows it
    ("No Edema, Consolidation and Pneumothorax", None),
    ("No Edema, Cardiomegaly", None),
    ("No Edema\nCardiomegaly", None),
    ("Without Edema; Fracture", None),
    ("No evidence of Edema, Fracture", None),
    ("Neither Edema nor Fracture", None),
    ("Absent: Edema, Fracture", None),
    ("Not present:\nEdema\nFracture", None),
    ("Negative for: Edema, Fracture", None),
    ("No finding of Edema, Fracture", None),
    ("All labels except Edema, Fracture", None),
    ("Hardly any Edema, Fracture", None),
    ("Cannot exclude Edema, Fracture", None),
    ("The radiograph fails to demonstrate Edema, Fracture", None),
    ("Absent: findings: Edema, Fracture", None),
    ("Absent: Edema\nCardiomegaly", None),
    ("Absent:\nEdema\n\nCardiomegaly", None),
    ("hardly Edema, Fracture", None),
    ("kein Edema\nFracture", None),
    ("e.g. Edema, Fracture", None),
    ("Fracture, possible Edema", (F,)),
    ("possible Edema, Fracture: yes", (F,)),
    ("Cardiomegaly, no Edema", (C,)),
    ("Cardiomegaly, no Edema or Fracture", (C,)),
    ("Cardiomegaly, neither Edema nor Fracture", (C,)),
    ("Cardiomegaly, no Edema, no Fracture", (C,)),
    ("Cardiomegaly\nNot present:\n- Edema\n- Pneumothorax", (C,)),
    ("Cardiomegaly\nAbsent: Edema, Fracture", (C,)),
    ("Present: Cardiomegaly; Absent: Edema, Fracture", (C,)),
    ("Absent: Edema\nPresent: Cardiomegaly", (C,)),
    ("### Present\n- Cardiomegaly\n\n### Absent\n- Edema", (C,)),
    ("No Finding", (N,)),
    ("No Finding: yes", (N,)),
    ("No Finding: no, Edema: yes", (E,)),
    ("Labels: No Finding", (N,)),
    # a denial after its names
    ("Edema, Fracture: no", None),
    ("Edema, Fracture not seen", None),
    ("Edema, Fracture, all absent", None),
    ("Edema\nFracture\n(neither is present)", None),
    ("Present: Cardiomegaly, Edema: no", None),
    ("Edema, Edema: no", None),
    ("Cardiomegaly: yes, Edema is ruled out", (C,)),
    # a verdict for each name
    ("Cardiomegaly: 1, Edema: 0", (C,)),
    ("Cardiomegaly = yes; Edema = no", (C,)),
    ("Cardiomegaly (yes), Edema (no)", (C,)),
    ("Cardiomegaly - present\nEdema - absent", (C,)),
    ("Cardiomegaly: positive\nEdema: unlikely", (C,)),
    ("Cardiomegaly ✓, Edema ✗", (C,)),
    ("Cardiomegaly\t1\nEdema\t0", (C,)),
    ("| Label | Present |\n|---|---|\n| Cardiomegaly | Yes |\n| Edema | No |", (C,)),
    ("| Label | Present | Absent |\n|---|---|---|\n| Cardiomegaly | x | |\n| Edema | | x |", None),
    ("Label,Present\nCardiomegaly,1\nEdema,0", None),
    ("Cardiomegaly,Edema\n1,0", None),
    ("Cardiomegaly: 1, Edema: -1", None),
    ("Cardiomegaly: 0.9, Edema: 0.1", None),
    ("Edema: uncertain, Fracture", None),
    ("Edema 0.03, Fracture", None),
    ("Possible: Edema, Fracture", None),
    ('{"Cardiomegaly": 1, "Edema": 0}', (C,)),
    ('{\n  "Cardiomegaly": true,\n  "Edema": false\n}', (C,)),
    ('{"labels": {"Cardiomegaly": true, "Edema": false}}', (C,)),
    ('{"present": ["Cardiomegaly"], "absent": ["Edema", "Fracture"]}', (C,)),
    ('{"absent": [], "present": ["Cardiomegaly", "Edema"]}', (C, E)),
    ('{"absent": {"labels": ["Edema", "Fracture"]}}', None),
    ('[{"label": "Cardiomegaly", "present": true}, {"label": "Edema", "present": false}]', None),
    ('{"label": "Edema", "confidence": 0.1}', None),
    ('{"Cardiomegaly": null, "Edema": true}', None),
    # marks before names
    ("+ Cardiomegaly\n- Edema\n- Fracture", (C,)),
    ("(+) Cardiomegaly, (-) Edema", (C,)),
    ("++ Cardiomegaly\n-- Edema", (C,)),
    ("1 Cardiomegaly\n0 Edema\n0 Fracture", (C,)),
    ("0 Edema\n1 Cardiomegaly", (C,)),
    ("0. Edema\n1. Cardiomegaly", None),
    ("-1 Edema\n1 Cardiomegaly", None),
    ("a) Edema\nb) Cardiomegaly", None),
    ('{"1": ["Cardiomegaly"], "0": ["Edema"]}', None),
    ("0: labels: Edema, Fracture", None),
    ("[x] Cardiomegaly\n[ ] Edema", (C,)),
    ("- [x] Cardiomegaly\n- [ ] Edema", (C,)),
    ("[x] Cardiomegaly [ ] Edema", None),
    ("☑ Cardiomegaly\n☐ Edema", (C,)),
    ("[x] Cardiomegaly\n[_] Edema", (C,)),
    ("Cardiomegaly\n- Edema", None),
    ("1 Cardiomegaly\n- Edema", None),
    ("- Edema\n- Fracture", (E, F)),
    ("1. Edema\n2. Fracture\n3. Cardiomegaly", (C, E, F)),
    ("1 Edema\n2 Fracture", (E, F)),
    ("- Cardiomegaly: yes\n- Edema: no", (C,)),
    # what is glued to the first name
    ("Labels: Cardiomegaly, Edema", (C, E)),
    ("**Findings:** Cardiomegaly, Edema", (C, E)),
    ("The labels are Cardiomegaly and Edema.", (C, E)),
    ("Final answer - Cardiomegaly, Edema", (C, E)),
    ("Labels (2): Cardiomegaly, Edema", (C, E)),
    ("Consistent with Cardiomegaly, Edema", None),
    ("The film shows Cardiomegaly, Edema", None),
    ('{"labels": ["Cardiomegaly", "Edema"]}', (C, E)),
    ('```json\n{"labels": ["Cardiomegaly", "Edema"]}\n```', (C, E)),
    ("\\boxed{Cardiomegaly, Edema}", (C, E)),
    ("\\boxed{\\text{Cardiomegaly}, \\text{Edema}}", (C, E)),
    ("<del>Edema, Fracture, Pneumonia</del>", None),
    # explanations and sentences
    ("Cardiomegaly (enlarged heart), Edema (Kerley B lines, cephalization)", (C, E)),
    ("1. **Cardiomegaly** (enlarged heart)\n2. **Pleural Effusion** (small, on the left)", (C, P)),
    ("Findings (in order of size): Cardiomegaly, Edema", (C, E)),
    ("Absent (on this film): Cardiomegaly, Edema", None),
    ("Edema: no (air on both sides), Fracture: yes (left rib)", (F,)),
    ("Edema (not sure, really)", None),
    ("Edema (---), Fracture (+)", None),
    ("Cardiomegaly (due to Edema)", None),
    ("Cardiomegaly (Edema, Fracture)", None),
    ("(Cardiomegaly, Edema)", None),
    ("Cardiomegaly, Edema. The heart is enlarged.", (C, E)),
    ("Cardiomegaly is present. There is no Edema.", (C,)),
    ("The following are not present. Edema. Fracture.", None),
    ("No Edema. Cardiomegaly.", None),
    ("So the answer is Cardiomegaly.", (C,)),
    ("**Cardiomegaly:** The heart is enlarged.\n**Edema:** The lungs are clear.", None),
    ("- Cardiomegaly - the heart is enlarged\n- Edema - the lungs are dry", None),
]


@pytest.mark.parametrize(("solution", "labels"), SOLUTIONS, ids=[row[0].replace("\n", " / ") for row in SOLUTIONS])
def test_verdicts_in_a_solution_are_honored_or_it_is_unreadable(solution, labels):
    answer, reading = read_strict(FULL.format(solution)), read(FULL.format(solution))
    assert (None if answer is None else answer.labels) == labels
    assert (reading.labels, reading.failed) == (labels or (), labels is None)


DENIALS_BEFORE = (
    "no {}", "No {}", "not {}", "without {}", "absent {}", "negative for {}", "ruled out: {}", "denies {}",
    "free of {}", "neither {}", "no evidence of {}", "there is no {}", "unlikely {}", "Absent: {}",
    "Not present:\n- {}", "no: {}", "**Not seen:** {}",
    "Negative: [{}]", "isn't {}", "w/o {}", "excluded: {}", "no mild {}", "[ ] {}",
)  # fmt: skip
DENIALS_AFTER = (
    "{}: no", "{} absent", "{}: not present", "{} (no)", "{} = 0", "{} is ruled out", "{} are unlikely", "{}: false",
    "{} - negative", "{}, none of these", "{}\nnot seen", "{} | 0", "{} [ ]", "{} was not convincingly seen", "{} ✗",
    "{} (none at all)", "{} (is not there)", "{}: no (air on both sides)", "{}. None of these.",
)  # fmt: skip
JOINS = (", ", "; ", "\n", "\n- ", ",\n", " and ", " or ", " nor ", ", and ", " • ", "/", '", "', ", no ", "\n1. ")
AFFIRMATIONS = (
    "{}",
    "{}: yes",
    "Labels: {}",
    "Present: {}",
    "{} is present",
    "there is {}",
    "1 {}",
    "{} (large heart)",
)


@st.composite
def partly_denied(draw) -> tuple[str, tuple[str, ...]]:
    """A solution, and the labels that are affirmed in it; others are named under a denial only."""
    names = draw(st.permutations(CHEXPERT14))
    denied, affirmed = names[: draw(st.integers(1, 4))], names[4 : draw(st.integers(4, 6))]
    denial = draw(st.sampled_from(DENIALS_BEFORE + DENIALS_AFTER)).format(draw(st.sampled_from(JOINS)).join(denied))
    parts = [*(draw(st.sampled_from(AFFIRMATIONS)).format(name) for name in affirmed), denial]
    separator = draw(st.sampled_from(("\n", "; ", ", ", ". ", "\n\n", "\n- ")))
    same_list = separator == "\n- " and separator in denial  # what follows is one more item under the denial
    if separator.startswith("\n") and not same_list:  # else the denial would reach what follows it
        parts = draw(st.permutations(parts))
    return separator.join(parts), tuple(name for name in CHEXPERT14 if name in affirmed)


@given(partly_denied())
def test_a_name_under_denial_is_never_read_and_no_affirmed_one_is_lost(solution):
    text, affirmed = solution
    assert read(FULL.format(text)).labels in ((), affirmed)
    assert set(read(f"Conclusion: {text}").labels) <= set(affirmed)  # of its first paragraph
    answer = read_strict(FULL.format(text))
    assert answer is None or answer.labels == affirmed


FORMS = ("{}: {}", '"{}": {}', "- {} ({})", "| {} | {} |", "{} = {}", "{} {}")
VERDICTS = (("yes", "no"), ("1", "0"), ("true", "false"), ("present", "absent"), ("+", "-"), ("✓", "✗"))


@given(label_sets.filter(bool), label_sets, st.sampled_from(FORMS), st.sampled_from(VERDICTS))
def test_a_verdict_for_each_name_is_read_in_every_form(affirmed, denied, form, verdicts):
    lines = [form.format(name, verdicts[0]) for name in affirmed]
    lines += [form.format(name, verdicts[1]) for name in denied if name not in affirmed]
    assert read(FULL.format("\n".join(lines))).labels == affirmed


# what is awkward, reply, labels read by evaluation
THOUGHTS_OF_DRAFTS = [
    ("cut off after a draft", "<think>The format is <solution>No Finding</solution>. The heart is large and", ()),
    ("cut off right after a draft", "<think>The format is <solution>No Finding</solution>", ()),
    ("cut off in a second thought", "<think>a</think><thinking>draft <answer>Edema</answer> or", ()),
    ("an answer before a thought that is cut off", "<solution>Edema</solution><think>or <answer>F</answer>", (E,)),
    ("an answer under a heading", "<think>maybe <solution>Edema</solution>, no</think>\nAnswer: Cardiomegaly", (C,)),
    ("an answer in JSON", '<think>maybe <solution>Edema</solution></think>{"answer": ["Cardiomegaly"]}', (C,)),
    ("an answer in other tags", "<think><solution>Edema</solution></think><answer>Cardiomegaly</answer>", (C,)),
    ("opened by the chat template", "maybe <solution>Edema</solution>, no</think>\nAnswer: Cardiomegaly", (C,)),
    ("prose after the draft", "<think>maybe <solution>Edema</solution></think> The film is normal.", ()),
    ("nothing after the draft", "<think>maybe <solution>Edema</solution>, no</think>", ()),
    ("between two thoughts", "<think>a</think><solution>Edema</solution><think>b</think>", (E,)),
    ("a denial before the block", "<think>r</think>Not present: <solution>Edema</solution>", ()),
    ("a denial before the heading", "The following is not the answer: Edema", ()),
    ("a wrong answer", "Wrong answer: Edema", ()),
    ("a heading of a denial before the block", "**Not present:**\n\n<solution>Edema</solution>", ()),
    ("a thought in capitals, cut off", "<Think>maybe <solution>Edema</solution>, but", ()),
    ("a thought of Magistral, cut off", "[THINK]maybe <solution>Edema</solution>, but", ()),
    ("a thought in brackets of prose", "I may [think] aloud. <solution>Edema</solution>", (E,)),
    ("a thought of Kimi-VL, cut off", "◁think▷maybe <solution>Edema</solution>, but", ()),
    ("a thought of MedGemma, cut off", "<unused94>thought\nmaybe <solution>Edema</solution>, but", ()),
    (
        "a thought of MedGemma",
        "<unused94>thought\n<solution>Edema</solution>?<unused95><solution>Fracture</solution>",
        (F,),
    ),
]


@pytest.mark.parametrize(
    ("reply", "labels"), [row[1:] for row in THOUGHTS_OF_DRAFTS], ids=[row[0] for row in THOUGHTS_OF_DRAFTS]
)
def test_a_draft_in_a_thought_is_not_the_answer(reply, labels):
    reading = read(reply)
    assert (reading.labels, reading.failed) == (labels, not labels)


def test_a_reply_cut_off_anywhere_never_reads_as_its_draft():
    reply = "<think>Perhaps <solution>Edema</solution>, but no.</think>\n<solution>Cardiomegaly</solution>"
    assert {read(reply[:end]).labels for end in range(len(reply) + 1)} == {(), (C,)}


ONLY_LABEL_REPLIES = [
    ("the form", "<solution>Edema</solution>", (E,)),
    ("white space around it", "\n <solution>Edema</solution> \n", (E,)),
    ("a thought", FULL.format("Edema"), None),
    ("a thought of another name", "<thinking>r</thinking><solution>Edema</solution>", None),
    ("a word before it", "Labels: <solution>Edema</solution>", None),
    ("a word after it", "<solution>Edema</solution> Bye.", None),
    ("two blocks", "<solution>Edema</solution><solution>Edema</solution>", None),
    ("a block inside out", "</solution>Edema<solution>", None),
    ("cut off", "<solution>Edema", None),
]


@pytest.mark.parametrize(
    ("reply", "labels"), [row[1:] for row in ONLY_LABEL_REPLIES], ids=[row[0] for row in ONLY_LABEL_REPLIES]
)
def test_only_label_replies_read_strictly(reply, labels):
    answer = read_strict(reply, ONLY_LABEL)
    assert (None if answer is None else answer.labels) == labels


SORRY = "I'm sorry, but I can't assist with that."

# what is awkward, reply, whether it is a refusal
DECLINED = [
    ("plain", SORRY, True),
    ("a typographic apostrophe, other spacing", "I’m sorry.\nI am unable  to\nprovide a diagnosis.", True),
    ("in capitals", "AS AN AI, I do not read films.", True),
    ("after the thought", f"<think>{'r ' * 400}</think>{SORRY}", True),
    ("in the thought, and nothing after it", f"<think>{SORRY}</think>", True),
    ("in the label block", "<think>r</think><answer>I cannot interpret this image.</answer>", True),
    ("the wrong kind of image", "<think>r</think>This is not a chest X-ray.", True),
    ("NV-Reason-CXR, of another image", "Please provide a frontal chest X-ray image.", True),
    ("the same in its tags", NV_REASON.format("Please provide a frontal chest X-ray image."), True),
    ("as JSON", '{"analysis": "I cannot analyze medical images.", "conclusion": ""}', True),
    ("labels all the same", f"{SORRY} Still: <solution>Edema</solution>", False),
    ("how a film is read", "I cannot see the left base, and the apex cannot be assessed.", False),
    ("a disclaimer far down", f"{'The heart is large. ' * 20}I cannot provide a diagnosis.", False),
    ("no reply", "", False),
]


@pytest.mark.parametrize(("reply", "refused"), [row[1:] for row in DECLINED], ids=[row[0] for row in DECLINED])
def test_refusals(reply, refused):
    reading = read(reply)
    assert (reading.refused, reading.failed) == (refused, not reading.labels)


# what is awkward, reply, reasoning
REASONINGS = [
    ("plain", FULL.format("Edema"), "r"),
    ("words before the thought", "Sure! <think>r</think><solution>Edema</solution>", "r"),
    ("two thoughts", "<think>a</think><think>b</think><solution>Edema</solution>", "a</think><think>b"),
    ("paragraphs", NV_REASON.format("Edema"), NV_REASON[8:].partition(" </think>")[0]),
    ("opened by the chat template", "r</think><solution>Edema</solution>", "r"),
    ("never closed", "<think>r<solution>Edema</solution>", "r"),
    ("no tags", "r <solution>Edema</solution>", "r"),
    ("cut off in the list", "r <solution>Ede", "r"),
    ("thought after the labels", "<solution>Edema</solution><think>r</think>", ""),
    ("another name", "<analysis>r</analysis><conclusion>Edema</conclusion>", "r"),
    ("JSON", '{"analysis": "a \\"b\\"\\nc", "conclusion": "Edema"}', 'a "b"\nc'),
    ("JSON after the thought", '<think>r</think>{"conclusion": "Edema"}', "r"),
    ("headings", "**Analysis:** r\n\n**Conclusion:** Edema", "r"),
    ("keys without quotes", "{analysis: r, conclusion: Edema}", "r"),
]


@pytest.mark.parametrize(("reply", "reasoning"), [row[1:] for row in REASONINGS], ids=[row[0] for row in REASONINGS])
def test_the_reasoning_is_the_text_of_the_thought(reply, reasoning):
    assert read(reply).reasoning == reasoning


def test_synonyms_are_no_labels_themselves_and_mean_labels():
    assert not set(SYNONYMS) & set(CHEXPERT14)
    assert set(SYNONYMS.values()) <= set(CHEXPERT14)
    assert all(read(FULL.format(name)).labels == (label,) for name, label in SYNONYMS.items())


def test_every_refusal_fits_into_the_opening_in_the_letters_it_is_looked_for():
    assert all(refusal == refusal.lower() and len(refusal) < OPENING for refusal in REFUSALS)


def test_the_reasoning_is_what_stands_before_the_block():
    assert read("<think>r</think><solution>Edema</solution> tail").reasoning == "r"
    assert read("no tags").reasoning == "no tags"
    assert read("<think>cut </think><solution>Ede").reasoning == "cut"


HOSTILE = {
    "openings": "<solution>",
    "closings": "</solution>",
    "thoughts": "<think></think>",
    "nested blocks": "<solution><answer>",
    "names": "Edema,",
    "words": "a and ",
    "lines": "\n",
    "spaces": " ",
    "hyphens": "a-",
    "fences": "```a",
    "quotes": '"',
    "brackets": "[",
    "objects": '{"a":',
    "headings": "answer: Edema",
    "explanations": "Edema (a b)",
    "open parentheses": "a (",
    "sentences": "Edema. A",
    "NUL bytes": "\x00",
    "right-to-left letters": "\u202eم",
}


def seconds(read, text: str) -> float:
    start = time.process_time()
    read(text)
    return time.process_time() - start


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    "frame", ["{}", "<think>r</think><solution>{}</solution>", '{{"conclusion": "{}"}}', "Answer: {}"]
)
def test_reading_a_hostile_reply_takes_linear_time(frame, piece):
    """Ten times the text takes about ten times as long, not a hundred times."""
    short, long = (frame.format(piece * (size // len(piece))) for size in (20_000, 200_000))
    for reader in (read, read_strict):
        assert min(seconds(reader, long) for _ in range(2)) < 40 * max(seconds(reader, short), 0.001)


def test_reading_the_longest_replies_takes_seconds():
    replies = ["<solution>" * 200_000, "</solution>" * 200_000, "<solution>" + "Edema," * 200_000 + "</solution>"]
    start = time.perf_counter()
    for reply in replies:
        read(reply), read_strict(reply)
    assert time.perf_counter() - start < 5


def test_a_reply_of_ten_megabytes_is_read():
    reading = read(FULL.format("Edema," * 1_700_000))
    assert (reading.labels, reading.duplicates) == (("Edema",), 1_699_999)
