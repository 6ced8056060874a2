"""Pictures of subjects for dreambooth: folders → cached latents and embeddings → samples → batches.

`open_data(base, recipe)` does all of it for a run; the other names are its parts.
"""

from dreambooth.data.dataset import DreamboothData, open_data
from dreambooth.data.prior import class_pictures
from dreambooth.data.prompts import PromptFile, read_prompts
from dreambooth.data.report import DataReport
from dreambooth.data.samples import Collate, SubjectSamples
from dreambooth.data.subjects import Picture, Subject, open_subject, subject_names

__all__ = [
    "Collate",
    "DataReport",
    "DreamboothData",
    "Picture",
    "PromptFile",
    "Subject",
    "SubjectSamples",
    "class_pictures",
    "open_data",
    "open_subject",
    "read_prompts",
    "subject_names",
]
