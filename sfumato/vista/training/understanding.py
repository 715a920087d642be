"""Training of the Vista understanding module.

First the picture alone: from every patch's hidden state the kind, finish, colour and box of what is seen there (an auxiliary
probe that is thrown away). Then answers: the ArtAug JSON with several yes/no questions about the same picture in one sequence,
choices between two pictures, and refinements of prompts; the probe goes on with a small weight.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.advice import CHOICE
from sfumato.vista.phrases import vocabulary
from sfumato.vista.training import questions
from sfumato.vista.training.augment import degrade
from sfumato.vista.training.loop import Step
from sfumato.vista.training.optim import Muon
from sfumato.vista.training.pictures import PicturePool, repainted
from sfumato.vista.training.precision import autocast
from sfumato.vista.training.reader import BEFORE, SPAN, Reader, picture_positions, text_positions
from sfumato.vista.understanding import END, IMAGE_TOKENS, MERGE, PAD, SIZE, WIDTH, build_model, build_tokenizer, save
from sfumato.vista.world import COLOURS, KINDS, Scene, pixel_box

LABELS = ("sky", *KINDS)
COLOUR_NAMES = ("", *sorted({colour for colours in COLOURS.values() for colour in colours}))
PER_PATCH = len(LABELS) + 2 + len(COLOUR_NAMES) + 4
IGNORED = -100
LOOKING = 0.12
"""Share of the steps that train the picture's side alone."""
PROBE_LAYER = 2
REPAINTED = 0.35
"""Share of the pictures that the generator painted over, where there are any."""
DIFFERENCE = 0.1
"""Two pictures whose finish differs by less are not compared."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """What follows a picture's tokens: ids, labels and positions ``[batch, length]``; the mask covers the opening too."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    mask: Tensor


class UnderstandingTask:
    """Teaches the model on a pool of rendered pictures; pictures painted over by a generator are used where one is given."""

    name = "understanding"
    seed = 51
    average = 0.997

    def __init__(
        self, folder: Path, *, device: str = "cpu", pool: int = 32_768, batch: int = 32, pipeline: Any = None, repaint: int = 3072
    ) -> None:
        torch.manual_seed(self.seed)
        self.device, self.batch = device, batch
        self.tokenizer = build_tokenizer([*vocabulary(), *questions.WORDS])
        probe = nn.Linear(WIDTH, MERGE * MERGE * PER_PATCH)
        self.model = nn.ModuleDict({"vlm": build_model(self.tokenizer), "probe": probe}).to(device)
        cache = folder / "pictures"
        cache.mkdir(parents=True, exist_ok=True)
        self.pool, self.held_out = PicturePool.make("train", pool, cache), PicturePool.make("held-out", 256, cache)
        self.buckets = _by_answer_length(self.pool.scenes)
        self.repainted = None
        if pipeline is not None:
            self.repainted = repainted(self.pool, pipeline, min(pool, repaint), cache / "repainted.safetensors")
        self.truth = _PatchTruth(self.pool), _PatchTruth(self.held_out)
        convert: Any = self.tokenizer.convert_tokens_to_ids
        self.numbers = [torch.tensor(convert([form.format(i) for i in range(SIZE + 1)])) for form in ("{}", "{},")]
        self.end, self.pad, self.yes_no, self.choices = convert(END), convert(PAD), convert(["yes", "no"]), convert(["A", "B"])
        self.choice_ids = self._ids([CHOICE])[0]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon on the blocks' matrices, AdamW on embeddings, the patch kernel, vectors and the probe."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name and "probe" not in name]
        known = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in known]
        return [_Muon(matrices, lr=0.015), torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-3, fused=True)]

    def backward(self, step: Step) -> float:
        """The picture alone at first; then a batch of answers, and by turns choices or refinements."""
        reader = self._reader(self.model)
        if step.share < LOOKING:
            index = self._draw(torch.arange(len(self.pool)), 3 * self.batch, step)
            with autocast(self.device):
                x, positions = reader.opened(self._pictures(index, step))
                hidden = reader.layers(x, reader.rotation(positions[:, None].expand(-1, len(x), -1)), None, 0, PROBE_LAYER)
                loss = self._probe_loss(self.model, hidden[:, BEFORE:], self.truth[0], index)
            loss.backward()
            return loss.item()
        index = self._alike(step)
        loss = self._answer_loss(reader, index, step)
        loss.backward()
        second = self._choice_loss(reader, step) if step.number % 2 else self._refinement_loss(reader, step.python)
        (0.5 * second).backward()
        return loss.item()

    @torch.no_grad()
    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """On held-out renderings, each token predicted from the true ones before it: pixels off, words and answers right."""
        reader, rng, pool = self._reader(average), random.Random(3), self.held_out
        off: list[Tensor] = []
        words: list[Tensor] = []
        answers: list[Tensor] = []
        for part in torch.arange(len(pool)).split(32):
            sequences = self._sequences([pool.scenes[i] for i in part.tolist()], rng)
            with autocast(self.device):
                logits, labels, _ = self._read(average, reader, pool.pictures[part].to(self.device).float() / 255, sequences)
            guess = logits.argmax(1).cpu()
            labels = labels.cpu()
            number = torch.zeros_like(labels, dtype=torch.bool)
            for table in self.numbers:
                value = _lookup(table, logits.shape[1])
                here = value[labels] >= 0
                off.append((value[guess[here]] - value[labels[here]]).abs().float())
                number |= here
            asked = torch.isin(labels, torch.tensor(self.yes_no))
            answers.append((guess == labels)[asked].float())
            words.append((guess == labels)[~asked & ~number].float())
        pairs = self._pairs(pool, 128, torch.Generator().manual_seed(4))
        with autocast(self.device):
            logits = self._choose(reader, pool.pictures[pairs.flatten()].to(self.device).float() / 255)[0]
        right = (logits[:, self.choices].argmax(1).cpu() == (pool.scores[pairs[:, 0]] < pool.scores[pairs[:, 1]]).long()).float()
        named = {"pixels_off": off, "words": words, "yes_no": answers, "choice": [right]}
        return {name: float(torch.cat(values).mean()) for name, values in named.items()}

    def export(self, average: nn.Module, folder: Path) -> None:
        """Save model, tokenizer and processor."""
        save(copy.deepcopy(average)["vlm"], self.tokenizer, folder)  # pyright: ignore[reportIndexIssue]

    def _reader(self, model: nn.Module) -> Reader:
        return Reader(model["vlm"], self.tokenizer)  # pyright: ignore[reportIndexIssue]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def _alike(self, step: Step) -> Tensor:
        """Scenes with answers of similar length, so that little is padding; buckets are drawn by their size."""
        sizes = torch.tensor([len(bucket) for bucket in self.buckets], dtype=torch.float)
        bucket = self.buckets[int(torch.multinomial(sizes, 1, generator=step.torch))]
        return self._draw(bucket, self.batch, step)

    def _draw(self, candidates: Tensor, count: int, step: Step) -> Tensor:
        """Some of the candidates (in rising order), those that the generator painted over more often than others."""
        drawn = torch.rand(count, generator=step.torch)
        painted = int((candidates < len(self.repainted)).sum()) if self.repainted is not None else 0
        among = torch.where(torch.rand(count, generator=step.torch) < REPAINTED, painted, len(candidates)) if painted else len(candidates)
        return candidates[(drawn * among).long()]

    def _pictures(self, index: Tensor, step: Step) -> Tensor:
        """The scenes' pictures in 0..1, each rendered or painted over by the generator, degraded a little."""
        pictures = self.pool.pictures[index]
        if self.repainted is not None:
            known = len(self.repainted)
            take = (index < known) & (torch.rand(len(index), generator=step.torch) < 0.9)
            pictures = torch.where(take[:, None, None, None], self.repainted[index % known], pictures)
        x = pictures.float() / 127.5 - 1
        return ((degrade(x, step.torch, 0.5) + 1) / 2).to(self.device)

    def _sequences(self, scenes: Sequence[Scene], rng: random.Random, asked: int = 3) -> Sequences:
        """One grounding and ``asked`` yes/no questions for each scene, which do not see one another; the last is of a colour."""
        pairs = []
        for scene in scenes:
            pairs.append(questions.grounding(scene, rng))
            pairs += [questions.yes_or_no(scene, rng) for _ in range(asked - 1)]
            pairs += [questions.colour_question(scene, rng)] * (asked > 0)
        asks, answers = self._ids([q for q, _ in pairs]), self._ids([a for _, a in pairs])
        start, frame = BEFORE + SPAN, self._reader(self.model)
        rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
        for first in range(0, len(pairs), asked + 1):
            ids: list[int] = []
            labels: list[int] = []
            positions: list[int] = []
            segments: list[int] = []
            for segment in range(asked + 1):
                question, answer = asks[first + segment], answers[first + segment]
                row = [frame.vision_end, *question, frame.turn_end, *answer]
                labels += [IGNORED] * (len(question) + 1) + [*answer, self.end]
                ids += row
                positions += range(start, start + len(row))
                segments += [segment + 1] * len(row)
            rows.append((ids, labels, positions, segments))
        return self._collate(rows, BEFORE + IMAGE_TOKENS)

    def _collate(self, rows: Sequence[tuple[list[int], list[int], list[int], list[int]]], opening: int) -> Sequences:
        length = max(len(row[0]) for row in rows)
        fill = (self.pad, IGNORED, 0, -1)
        ids, labels, positions, segments = (
            torch.tensor([row[k] + [fill[k]] * (length - len(row[k])) for row in rows], device=self.device) for k in range(4)
        )
        whole = F.pad(segments, (opening, 0))
        mask = (whole[:, None, :] == whole[:, :, None]) | (whole[:, None, :] == 0)
        mask &= torch.ones(mask.shape[1:], dtype=torch.bool, device=self.device).tril()
        return Sequences(ids, labels, positions, mask[:, None])

    def _read(self, model: nn.Module, reader: Reader, pictures: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor, Tensor]:
        """Scores ``[answer tokens, vocabulary]``, their labels, and the picture's hidden states at the probe's layer."""
        opening, positions = reader.opened(pictures)
        x = torch.cat([opening, reader.embed(sequences.ids)], 1)
        batch = len(x)
        places = torch.cat([positions[:, None].expand(-1, batch, -1), sequences.positions.expand(3, -1, -1)], 2)
        rotation = reader.rotation(places)
        x = reader.layers(x, rotation, sequences.mask, 0, PROBE_LAYER)
        seen = x[:, BEFORE : BEFORE + IMAGE_TOKENS]
        x = reader.layers(x, rotation, sequences.mask, PROBE_LAYER, None)
        answered = sequences.labels != IGNORED
        return reader.logits(x[:, opening.shape[1] :][answered]), sequences.labels[answered], seen

    def _answer_loss(self, reader: Reader, index: Tensor, step: Step) -> Tensor:
        sequences = self._sequences([self.pool.scenes[i] for i in index.tolist()], step.python)
        with autocast(self.device):
            logits, labels, seen = self._read(self.model, reader, self._pictures(index, step), sequences)
            probe = self._probe_loss(self.model, seen, self.truth[0], index)
        surprise = self._surprise(logits.float(), labels)
        asked = torch.isin(labels, torch.tensor(self.yes_no, device=labels.device))
        weights = torch.where(asked, 8.0, 1.0)
        return (surprise * weights).sum() / weights.sum() + 0.15 * probe

    def _surprise(self, logits: Tensor, labels: Tensor, spread: float = 0.7) -> Tensor:
        """Cross entropy per token; a number's target is a bell around it, so that near misses cost little."""
        scores = F.log_softmax(logits, -1)
        surprise = -scores.gather(1, labels[:, None])[:, 0]
        line = torch.arange(SIZE + 1.0, device=logits.device)
        for table in self.numbers:
            value = _lookup(table, logits.shape[1]).to(logits.device)[labels]
            here = value >= 0
            bell = torch.softmax(-0.5 * ((line - value[here][:, None]) / spread) ** 2, 1)
            soft = -(bell * scores[here][:, table.to(logits.device)]).sum(1)
            surprise = surprise.masked_scatter(here, soft)
        return surprise

    def _probe_loss(self, model: nn.Module, seen: Tensor, truth: _PatchTruth, index: Tensor) -> Tensor:
        """Kind, finish, colour and box of the element at every patch; objects' boxes weigh more than the sky's."""
        probe = model["probe"]  # pyright: ignore[reportIndexIssue]
        scores = probe(F.rms_norm(seen, (WIDTH,))).float().view(len(seen), -1, PER_PATCH)
        kind, finish, colour, box = scores.split((len(LABELS), 2, len(COLOUR_NAMES), 4), -1)
        targets, boxes = truth.at(index, self.device)
        parts = [F.cross_entropy(s.flatten(0, 1), t.flatten()) for s, t in zip((kind, finish, colour), targets.unbind(-1), strict=True)]
        distance = (box * 0.5 + 0.5 - boxes).abs()
        weight = 0.2 + (targets[..., :1] > 0).float()
        return parts[0] + parts[1] + 0.5 * parts[2] + 8 * (distance * weight).sum() / (4 * weight.sum())

    def _pairs(self, pool: PicturePool, count: int, source: torch.Generator) -> Tensor:
        """Pairs ``[count, 2]`` whose finish differs enough."""
        drawn = torch.randint(0, len(pool), (8 * count, 2), generator=source)
        apart = (pool.scores[drawn[:, 0]] - pool.scores[drawn[:, 1]]).abs() >= DIFFERENCE
        return drawn[apart][:count]

    def _choose(self, reader: Reader, pictures: Tensor, answer: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores of the answer and of what follows it, for pairs of pictures ``[2 * batch, 3, 64, 64]``."""
        device, batch = pictures.device, len(pictures) // 2
        seen = reader.see(pictures).view(batch, 2, IMAGE_TOKENS, -1)
        words = lambda ids: reader.embed(torch.tensor(ids, device=device)).expand(batch, -1, -1)  # noqa: E731
        tail = [reader.vision_end, *self.choice_ids, reader.turn_end]
        x = [
            words([*reader.opening, reader.vision_start]),
            seen[:, 0],
            words([reader.vision_end, reader.vision_start]),
            seen[:, 1],
            words(tail),
        ]
        second = BEFORE + SPAN + 2
        positions = [text_positions(0, BEFORE, device), picture_positions(BEFORE, device), text_positions(BEFORE + SPAN, 2, device)]
        positions += [picture_positions(second, device), text_positions(second + SPAN, len(tail) + (answer is not None), device)]
        if answer is not None:
            x.append(reader.embed(answer)[:, None])
        places = torch.cat(positions, 1)[:, None].expand(-1, batch, -1)
        hidden = reader.layers(torch.cat(x, 1), reader.rotation(places), None, 0, None)
        return reader.logits(hidden[:, -1 - (answer is not None)]), reader.logits(hidden[:, -1])

    def _choice_loss(self, reader: Reader, step: Step) -> Tensor:
        pairs = self._pairs(self.pool, self.batch // 2, step.torch)
        second = (self.pool.scores[pairs[:, 0]] < self.pool.scores[pairs[:, 1]]).long()
        answer = torch.tensor(self.choices)[second].to(self.device)
        with autocast(self.device):
            chosen, after = self._choose(reader, self._pictures(pairs.flatten(), step), answer)
        return F.cross_entropy(chosen.float(), answer) + F.cross_entropy(after.float(), torch.full_like(answer, self.end))

    def _refinement_loss(self, reader: Reader, rng: random.Random) -> Tensor:
        pairs = [questions.refinement(rng) for _ in range(2 * self.batch)]
        asks, answers = self._ids([q for q, _ in pairs]), self._ids([a for _, a in pairs])
        rows = []
        for question, answer in zip(asks, answers, strict=True):
            ids = [*reader.opening, *question, reader.turn_end, *answer]
            labels = [IGNORED] * (len(ids) - len(answer) - 1) + [*answer, self.end]
            rows.append((ids, labels, list(range(len(ids))), [0] * len(ids)))
        sequences = self._collate(rows, 0)
        answered = sequences.labels != IGNORED
        with autocast(self.device):
            rotation = reader.rotation(sequences.positions.expand(3, -1, -1))
            hidden = reader.layers(reader.embed(sequences.ids), rotation, None, 0, None)
            logits = reader.logits(hidden[answered])
        return F.cross_entropy(logits.float(), sequences.labels[answered])


class _Muon(Muon):
    """Muon whose orthogonalisation runs in the precision of the forward pass: bfloat16, as its authors do it, where that is fast."""

    def step(self, closure=None):  # noqa: ANN001 - the base class's signature
        """One update."""
        with autocast(self.param_groups[0]["params"][0].device.type):
            return super().step(closure)


class _PatchTruth:
    """Kind, finish, colour and box of the element at every patch of a pool's pictures."""

    def __init__(self, pool: PicturePool) -> None:
        most = max(len(scene.elements) for scene in pool.scenes)
        classes, boxes = torch.zeros(len(pool), most, 3, dtype=torch.uint8), torch.zeros(len(pool), most, 4, dtype=torch.uint8)
        for i, scene in enumerate(pool.scenes):
            rows = [(LABELS.index(e.kind), e.beautiful, COLOUR_NAMES.index(e.colour or "")) for e in scene.elements]
            classes[i, : len(rows)] = torch.tensor(rows, dtype=torch.uint8)
            boxes[i, : len(rows)] = torch.tensor([pixel_box(e, SIZE) for e in scene.elements], dtype=torch.uint8)
        self.elements, self.classes, self.boxes = pool.elements, classes, boxes

    def at(self, index: Tensor, device: str) -> tuple[Tensor, Tensor]:
        """Classes ``[batch, 64, 3]`` and boxes ``[batch, 64, 4]`` in shares of the side."""
        where = self.elements[index].long()[..., None]
        classes = self.classes[index].gather(1, where.expand(-1, -1, 3)).long()
        return classes.to(device), self.boxes[index].gather(1, where.expand(-1, -1, 4)).to(device).float() / SIZE


def build(folder: Path, device: str) -> UnderstandingTask:
    """The task, seeing pictures as the generator shows them where ``folder`` holds a trained pipeline."""
    pipeline = None
    source = next((folder / part for part in ("guided", "transformer") if (folder / part / "model_index.json").is_file()), None)
    if source is not None:
        from diffusers import FluxPipeline  # pyright: ignore[reportPrivateImportUsage]

        pipeline = FluxPipeline.from_pretrained(source).to(device)
    return UnderstandingTask(folder, device=device, pipeline=pipeline)


def _by_answer_length(scenes: Sequence[Scene]) -> list[Tensor]:
    """Indices of the scenes by their number of plain elements; rare numbers join the next smaller."""
    counts = [min(sum(not e.beautiful for e in scene.elements), 5) for scene in scenes]
    buckets = [torch.tensor([i for i, c in enumerate(counts) if c == n], dtype=torch.long) for n in range(6)]
    return [bucket for bucket in buckets if len(bucket)]


def _lookup(table: Tensor, size: int) -> Tensor:
    """For every token id the number it spells in this form, or -1."""
    values = torch.full((size,), -1)
    values[table] = torch.arange(len(table))
    return values
