"""`open_data`: from a recipe to samples ready to be trained on, with a report; the sum of the other modules."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from common.cache import fingerprint_of
from common.errors import UserError
from dreambooth.config import DreamboothRecipe, fill_in
from dreambooth.data.embeddings import cut_off, prepare_embeddings, tokens_of
from dreambooth.data.latents import prepare_latents
from dreambooth.data.pictures import Cropping
from dreambooth.data.prior import ClassPictures, class_pictures
from dreambooth.data.report import DataReport, FolderReport
from dreambooth.data.samples import Rows, SubjectSamples
from dreambooth.data.subjects import Picture, Subject, open_subject
from dreambooth.model import SdxlBase


@dataclass
class DreamboothData:
    """What a run is trained on.

    Args:
        subject: whose pictures they are.
        prior: the class pictures, None without prior preservation.
        samples: to be given to the engine, with `Collate`.
        report: what was found.
    """

    subject: Subject
    prior: ClassPictures | None
    samples: SubjectSamples
    report: DataReport


def open_data(base: SdxlBase, recipe: DreamboothRecipe) -> DreamboothData:
    """Find the subject's pictures, make the class pictures that are missing, and encode what is not in the cache.

    A collective call. Of the model it needs all parts, frozen and without an adapter; afterwards nothing but the UNet,
    and the text encoders where they are trained.

    Args:
        base: the model.
        recipe: a sound recipe.

    Raises:
        UserError: nothing usable there, or nothing can be written; the message says what to do.
    """
    data = recipe.data
    subject = open_subject(data)
    prior = None
    if recipe.prior.weight > 0:
        if recipe.prior.path and subject.folder.resolve() == Path(recipe.prior.path).expanduser().resolve():
            raise UserError(
                f"prior.path={recipe.prior.path} is the folder of the subject's own pictures; give one for pictures of "
                f"any {subject.class_word}, or leave it out to have them generated in the cache"
            )
        prior = class_pictures(
            base, subject.class_word, recipe.prior, resolution=data.resolution, cache_dir=data.cache_dir
        )
    prompts = [
        fill_in(picture.caption or data.prompt, token=data.token, class_word=subject.class_word)
        for picture in subject.pictures
    ]
    class_prompts = [] if prior is None else [prior.prompt] * len(prior.pictures)
    every_prompt = Counter([*prompts, *class_prompts])
    if recipe.text_encoder.train:
        embeddings = tokens_of(base, every_prompt)
    else:
        embeddings = prepare_embeddings(base, every_prompt, cache_dir=data.cache_dir)
    cropping = Cropping(data.resolution, data.crop, data.flip, data.variants, recipe.seed)
    rows = _rows(base, subject.pictures, prompts, cropping, data.cache_dir, subject.name)
    class_rows = None
    if prior is not None:
        # One variant each: where a subject has a handful of pictures, its class has hundreds.
        cropping = replace(cropping, variants=1)
        class_rows = _rows(base, prior.pictures, class_prompts, cropping, data.cache_dir, subject.class_word)
    samples = SubjectSamples(rows, class_rows, embeddings, batch_size=recipe.train.batch_size, seed=recipe.seed)
    report = DataReport(
        subject.name,
        subject.class_word,
        FolderReport(str(subject.folder), len(subject.pictures), subject.findings),
        prior and FolderReport(str(prior.folder), len(prior.pictures), prior.findings),
        generated=prior.generated if prior else 0,
        prompts=dict(every_prompt),
        cut={prompt: end for prompt in every_prompt if (end := cut_off(base.tokenizers, prompt))},
        crops=sum(rows.latents.variants(i) for i in range(len(rows))),
        content=fingerprint_of([each.look.content for each in subject.pictures], prompts, prior and prior.content),
    )
    return DreamboothData(subject, prior, samples, report)


def _rows(
    base: SdxlBase, pictures: list[Picture], prompts: list[str], cropping: Cropping, cache_dir: str | None, what: str
) -> Rows:
    return Rows(prepare_latents(base, pictures, cropping, cache_dir=cache_dir, what=what), prompts)
