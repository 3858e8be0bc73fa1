"""Forge the stand-ins: small models of the real architectures, trained from scratch and shipped with the package.

A stand-in takes the place of a hub model and nothing else: it is loaded through the same `from_pretrained`.  The
stand-in MedGemma learns from phantom films; the stand-in Qwen from drawings of shapes and from words, and has never
seen a film.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pandas as pd

from chexreason import answers, prompts
from chexreason.data.phantom import hospitals
from chexreason.labels import CHEXPERT14, apply_policy, positives
from chexreason.teacher import rules

SIZE = 128
"""Pixels a side of the pictures the stand-ins see."""

LABELS = list(CHEXPERT14)

VOCABULARY = 2048
"""Tokens that are learnt; the prompts come on top."""

_NAMES = "|".join(LABELS)

PIECES = rf"</?[a-z]+>|\d+\. [^\n<]+\n?|\n|{_NAMES}|(?:(?!{_NAMES})[^<>.:;\n])+[.:;]?|[<>.:;]"
"""What byte-level BPE may merge: a tag, a numbered line, a label's name, a sentence.  So a label is one token, and an
answer a sixth as long as with word pieces, which is what a laptop has time for."""

PROMPTS = prompts.names()
"""The prompts a stand-in has met when it is shipped, each one token to it; any other comes in small pieces."""

DICTATIONS = {
    "free_reasoning": "Write a reading of",
    "reasoning_narrative": "Write a narrative of",
    "reasoning_a": "Write the twelve steps of",
    "only_label": "Write the labels of",
}
"""How each form of answer is dictated; half of all dictations are the first."""


class Turn(NamedTuple):
    """One exchange to learn from: a question, an answer and the number of the picture they are about."""

    question: str
    answer: str
    picture: int


# What the stand-in MedGemma reads before any study: captions of hospital A's films, questions about them, and words.


def pretraining_films(films: int, seed: int) -> pd.DataFrame:
    """Films of hospital A, with rare findings drawn more often than they occur.

    The fourteen label columns hold A's labels, positive (1.0) or not (0.0): neither the truth of a drawing nor another
    hospital is seen before a study.  So MedGemma has seen MIMIC and not NIH.
    """
    pool = hospitals.film_table(5 * films, seed, "A")
    labels = apply_policy(pool[LABELS], "u_zeros")
    rarity = (labels / labels.mean().clip(lower=1e-3)).max(axis="columns") + 1.0
    picks = np.random.default_rng(seed).choice(len(pool), films, replace=False, p=rarity / rarity.sum())
    return pool.drop(columns=LABELS).join(labels).iloc[picks].reset_index(drop=True)


def film_turns(films: pd.DataFrame, seed: int) -> list[Turn]:
    """Captions: each film's labels, asked for with one of `PROMPTS` and answered in one sentence, or in none."""
    rng = np.random.default_rng(seed)
    turns = []
    for number, row in films.iterrows():
        labels, form = positives(row), str(rng.choice(PROMPTS))
        said = "" if form == answers.ONLY_LABEL else f"The film shows {', '.join(labels) or 'no label'}."
        turns.append(Turn(prompts.load(form), answers.write(answers.Answer(said, labels), form), number))
    return turns


def choice_turns(films: pd.DataFrame, seed: int) -> list[Turn]:
    """Which of a few findings are on a film: three to six are asked about, present ones more often than by chance."""
    rng = np.random.default_rng(seed)
    turns = []
    for number, row in films.iterrows():
        odds = 1.0 + 2.0 * row[LABELS].to_numpy(float)
        asked = [
            LABELS[place] for place in sorted(rng.choice(14, rng.integers(3, 7), replace=False, p=odds / odds.sum()))
        ]
        present = [name for name in asked if row[name]]
        turns.append(Turn(f"Which of these: {', '.join(asked)}?", f"{', '.join(present) or 'None'}.", number))
    return turns


def dictations(films: pd.DataFrame, seed: int) -> list[Turn]:
    """Exercises in wording: the findings are told, and the answer puts them into one of the teacher's forms."""
    rng = np.random.default_rng(seed)
    forms, turns = list(DICTATIONS), []
    for number, row in films.iterrows():
        labels, form = positives(row), str(rng.choice(forms, p=[1 / 2, 1 / 6, 1 / 6, 1 / 6]))
        trace = rules.write_trace(labels, hospitals.boxes(row.recipe), row["view"], rng, form)
        told = f"{DICTATIONS[form]}: {', '.join(labels)}."
        turns.append(Turn(told, answers.write(answers.Answer(trace, labels), form), number))
    return turns


# What the stand-in Qwen sees: drawings of shapes.

SHAPES = ("circle", "square", "triangle", "cross")


def drawing(rng: np.random.Generator) -> tuple[np.ndarray, tuple[str, ...]]:
    """A grey picture, uint8 (SIZE, SIZE), of one to three different shapes, and their names."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(rng.normal(90, 12, (SIZE, SIZE)).clip(0, 255).astype(np.uint8))
    pen, names = ImageDraw.Draw(picture), []
    for name in rng.permutation(SHAPES)[: rng.integers(1, 4)]:
        x, y, r, grey = *rng.integers(20, SIZE - 20, 2), rng.integers(8, 20), int(rng.integers(150, 255))
        box = (x - r, y - r, x + r, y + r)
        if name == "circle":
            pen.ellipse(box, fill=grey)
        elif name == "square":
            pen.rectangle(box, fill=grey)
        elif name == "triangle":
            pen.polygon([(x - r, y + r), (x + r, y + r), (x, y - r)], fill=grey)
        else:
            pen.line((x - r, y, x + r, y), fill=grey, width=5)
            pen.line((x, y - r, x, y + r), fill=grey, width=5)
        names.append(str(name))
    return np.asarray(picture), tuple(sorted(names))


def drawings(count: int, seed: int) -> tuple[np.ndarray, list[Turn]]:
    """Drawings, uint8 (count, SIZE, SIZE), and a turn about each: which shapes it shows."""
    rng = np.random.default_rng(seed)
    drawn = [drawing(rng) for _ in range(count)]
    turns = [
        Turn(
            f"Name the shapes, from: {', '.join(SHAPES)}.",
            f"<think>The drawing shows {', '.join(names)}.</think>\n<solution>{', '.join(names)}</solution>",
            number,
        )
        for number, (_, names) in enumerate(drawn)
    ]
    return np.stack([picture for picture, _ in drawn]), turns


def about(turns: Sequence[Turn], pictures: int) -> list[Turn]:
    """The same exchanges over other pictures, which show nothing of what is said: words only."""
    return [turn._replace(picture=number % pictures) for number, turn in enumerate(turns)]


# Tokenizer, processor and configuration: the real classes, shrunk.


def texts(turns: Sequence[Turn]) -> list[str]:
    """Questions and answers, for the tokenizer to learn from; `PROMPTS` it need not learn."""
    known = {prompts.load(name) for name in PROMPTS}
    return [text for turn in turns for text in (turn.question, turn.answer) if text not in known]


def tokenizer(texts: Iterable[str], special: Sequence[str], **roles):
    """A lossless byte-level BPE: `VOCABULARY` tokens learnt from `texts` and one for each of `PROMPTS`; left-padded."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), bytes_of])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(special), initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, learn)
    bpe.add_tokens([AddedToken(prompts.load(name), normalized=False) for name in PROMPTS])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, padding_side="left", **roles)


def chat_template(name: str) -> str:
    """The chat template of a model family, as trl carries it."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def gemma_processor(texts: Iterable[str]):
    """A Gemma 3 processor for pictures of SIZE x SIZE pixels, 16 tokens each."""
    from transformers import Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    special += ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    words = tokenizer(
        texts,
        special,
        pad_token="<pad>",
        eos_token="<end_of_turn>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    pictures = Gemma3ImageProcessorPil(size={"height": SIZE, "width": SIZE}, do_convert_rgb=True)
    return Gemma3Processor(pictures, words, chat_template=chat_template("gemma3"), image_seq_length=16)


def gemma(processor, seed: int):
    """A Gemma 3 of 1.9 million weights: 8 x 8 patches seen by SigLIP, pooled to 16 tokens, read by four layers."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    words = processor.tokenizer
    text = Gemma3TextConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        sliding_window=1024,
        max_position_embeddings=4096,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=words.bos_token_id,
    )
    vision = SiglipVisionConfig(
        hidden_size=112,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=16,
    )
    config = Gemma3Config(  # type: ignore[call-arg]
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=16,
        image_token_index=words.image_token_id,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        eos_token_id=words.eos_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Gemma3ForConditionalGeneration(config)
    projection = model.model.multi_modal_projector.mm_input_projection_weight
    torch.nn.init.normal_(projection, std=vision.hidden_size**-0.5)  # Gemma 3 starts it at 0: no picture gets through
    return _ending_turns(model, words)


def qwen_processor(texts: Iterable[str]):
    """A Qwen2.5-VL processor for pictures of SIZE x SIZE pixels, 16 tokens each."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from chexreason.models import image_only_qwen

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    special += ["<|image_pad|>", "<|video_pad|>"]
    words = tokenizer(
        texts,
        special,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    area = SIZE * SIZE
    pictures = Qwen2VLImageProcessorPil(patch_size=16, min_pixels=area, max_pixels=area, do_convert_rgb=True)
    return image_only_qwen()(pictures, words, chat_template=chat_template("qwen2_5_vl"))


def qwen(processor, seed: int):
    """A Qwen2.5-VL of about 2 million weights: 8 x 8 patches, merged to 16 tokens, read by four layers."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    words = processor.tokenizer
    text = {
        "vocab_size": len(words),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
        "bos_token_id": words.pad_token_id,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 4,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_heads": 4,
        "patch_size": 16,
        "out_hidden_size": 128,
        "window_size": 64,
        "fullatt_block_indexes": [1, 3],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return _ending_turns(Qwen2_5_VLForConditionalGeneration(config), words)


def _ending_turns(model, words):
    """Generation stops where a turn ends."""
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    return model


# Training.


def draw_all(films: pd.DataFrame) -> np.ndarray:
    """The films' pictures, uint8 (films, SIZE, SIZE)."""
    from tqdm import tqdm

    bar = tqdm(films["recipe"], desc="drawing films", mininterval=5, file=sys.stderr)
    return np.stack([hospitals.draw(recipe, SIZE).image for recipe in bar])


def pixels(pictures: np.ndarray):
    """What a Gemma 3 image processor makes of grey pictures: float32 (n, 3, SIZE, SIZE) from -1 to 1."""
    import torch

    grey = torch.from_numpy(pictures).float().div(127.5).sub(1.0)
    return grey[:, None].expand(-1, 3, -1, -1)


def places(films: pd.DataFrame) -> np.ndarray:
    """Where each film's labeled findings lie: bool (films, 64, labels), whether a box touches a patch's middle.

    A finding that the labels leave out has no place.
    """
    middles = (np.arange(8) + 0.5) / 8
    inside = np.zeros((len(films), 8, 8, len(LABELS)), dtype=bool)
    for number, recipe in enumerate(films["recipe"]):
        for box in hospitals.boxes(recipe):
            rows = (middles > box.y0 - 1 / 16) & (middles < box.y1 + 1 / 16)
            columns = (middles > box.x0 - 1 / 16) & (middles < box.x1 + 1 / 16)
            inside[number, :, :, LABELS.index(box.finding)] |= rows[:, None] & columns
    labeled = films[LABELS].to_numpy(bool)
    return inside.reshape(len(films), 64, len(LABELS)) & labeled[:, None]


class Eyes:
    """A Gemma 3's vision tower and projector under two linear heads, which are thrown away after training.

    One head names the findings of the whole film from all picture tokens side by side (their mean would lose small
    findings); the other tells which finding lies under which patch, without which the small ones are learnt late.
    """

    def __init__(self, model, labels: int):
        import torch

        self.model = model.model
        self.whole = torch.nn.Linear(16 * model.config.text_config.hidden_size, labels)
        self.patch = torch.nn.Linear(model.config.vision_config.hidden_size, labels)
        parts = (self.model.vision_tower, self.model.multi_modal_projector, self.whole, self.patch)
        self.weights = [weight for part in parts for weight in part.parameters()]

    def look(self, pictures: np.ndarray):
        """Logits of pictures uint8 (n, SIZE, SIZE): of the whole film (n, labels), of each patch (n, 64, labels)."""
        patches = self.model.vision_tower(pixel_values=pixels(pictures)).last_hidden_state
        return self.whole(self.model.multi_modal_projector(patches).flatten(1)), self.patch(patches)

    def loss(self, pictures: np.ndarray, truth: np.ndarray, inside: np.ndarray):
        """Binary cross-entropy of the film's labels plus that of its patches, the latter weighted up for being rare."""
        import torch

        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
        whole, patch = self.look(pictures)
        seldom = torch.tensor(4.0)
        film_loss = cross_entropy(whole, torch.tensor(truth, dtype=torch.float32))
        patch_loss = cross_entropy(patch, torch.tensor(inside, dtype=torch.float32), pos_weight=seldom)
        return film_loss + 2.0 * patch_loss, film_loss


def train_vision(
    model, pictures: np.ndarray, truth: np.ndarray, inside: np.ndarray, epochs: int, rate: float, seed: int
) -> pd.DataFrame:
    """Teach the vision tower and the projector to see what is on a film, and where.

    `pictures` uint8 (n, SIZE, SIZE), `truth` (n, labels) and `inside` (n, 64, labels) 0 or 1.  The last twentieth is
    held out; returned is one row an epoch and label: loss on the films trained on, the held-out area under the ROC
    curve, and its mean over the labels.
    """
    import torch
    from sklearn.metrics import roc_auc_score
    from tqdm import tqdm

    torch.manual_seed(seed)
    rng, eyes = np.random.default_rng(seed), Eyes(model, truth.shape[1])
    rows: list[dict] = []
    training, held = np.split(np.arange(len(pictures)), [len(pictures) * 19 // 20])
    batches = len(training) // 64
    optimizer = torch.optim.AdamW(eyes.weights, lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * batches, pct_start=0.1)
    for epoch in range(1, epochs + 1):
        order, total = rng.permutation(training), 0.0
        so_far = f", AUC {rows[-1]['mean auc']:.3f}" if rows else ""
        what = f"seeing {epoch}/{epochs}{so_far}"
        for start in tqdm(range(0, batches * 64, 64), desc=what, mininterval=5, file=sys.stderr):
            batch, shift = order[start : start + 64], rng.integers(-3, 4, 2)  # a new frame round the same film
            loss, film_loss = eyes.loss(np.roll(pictures[batch], shift, (1, 2)), truth[batch], inside[batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(eyes.weights, 1.0)
            optimizer.step()
            schedule.step()
            total += film_loss.item()
        with torch.no_grad():
            scores = torch.cat(
                [eyes.look(pictures[part])[0] for part in np.array_split(held, -(-len(held) // 128))]
            ).numpy()
        areas = roc_auc_score(truth[held], scores, average=None)
        rows += [
            {"epoch": epoch, "loss": total / batches, "label": label, "auc": area, "mean auc": areas.mean()}
            for label, area in zip(LABELS, areas, strict=True)
        ]
    return pd.DataFrame(rows)


def align(model, processor, pictures: np.ndarray, turns: Sequence[Turn], epochs: float, rate: float, seed: int):
    """Teach the language model to answer about pictures, with trl's SFTTrainer; the vision tower stays as it is.

    `pictures` uint8 (n, SIZE, SIZE); every turn names one of them.  Returns the trainer's log: step, loss and
    token accuracy on the answers.
    """
    from datasets import Dataset, Image
    from PIL import Image as Picture
    from trl import SFTConfig, SFTTrainer

    from chexreason import runtime
    from chexreason.training import common, sft

    rows = {
        "prompt": [[{"role": "user", "content": turn.question}] for turn in turns],
        "completion": [[{"role": "assistant", "content": turn.answer}] for turn in turns],
        "image": [Picture.fromarray(pictures[turn.picture]) for turn in turns],
    }
    nowhere = TemporaryDirectory()  # nothing is saved, but trl makes the folder
    arguments = SFTConfig(
        output_dir=nowhere.name,
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.02,
        adam_beta2=0.95,
        max_length=None,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=50,
        seed=seed,
        disable_tqdm=True,
        report_to="none",
        **runtime.on_cpu(),
    )
    trainer = SFTTrainer(
        model=model,
        processing_class=processor,
        args=arguments,
        train_dataset=Dataset.from_dict(rows).cast_column("image", Image()),
        callbacks=[common.progress("answering")],
    )
    common.without_printing(trainer).train()
    return sft.log(trainer.state.log_history)


def freeze_vision(model) -> None:
    """Keep the vision tower as it is from here on."""
    model.model.vision_tower.requires_grad_(False)


def save(model, processor, folder: Path) -> float:
    """Write model and processor as a hub folder, weights as float32 safetensors; returns the weights' size in MB."""
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return (Path(folder) / "model.safetensors").stat().st_size / 1e6


def summary(seeing: pd.DataFrame) -> str:
    """What the vision tower tells apart after its last epoch, in a sentence."""
    last = seeing[seeing["epoch"] == seeing["epoch"].max()].set_index("label")["auc"]
    return (
        f"On phantom films held out, the vision tower's area under the ROC curve is {last.mean():.3f} in the mean; "
        f"best is {last.idxmax()} ({last.max():.3f}), hardest {last.idxmin()} ({last.min():.3f})."
    )
