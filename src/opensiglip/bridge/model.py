"""`SiglipForPreTraining`: SigLIP 2's whole objective around any SiglipModel, for the stock transformers Trainer.

Requested in huggingface/transformers#40798; the library itself has only the sigmoid loss, for one process.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
    Siglip2Model,
    SiglipModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import ModelOutput

from opensiglip.bridge.collator import PreTrainingCollator
from opensiglip.bridge.loss import siglip2_terms
from opensiglip.data.loader import to_device
from opensiglip.data.text import TextPipeline
from opensiglip.distributed import average
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, HeadShape, Shape
from opensiglip.objectives.base import Notes
from opensiglip.optim import matrices
from opensiglip.training.learner import Learner, denominators


class SiglipForPreTrainingConfig(PretrainedConfig):
    """A Siglip config and the objective around it."""

    model_type = "opensiglip_pretraining"

    def __init__(
        self,
        siglip: dict[str, Any] | None = None,
        vocabulary: int = 0,
        sigmoid: float = 1.0,
        caption: float = 1.0,
        distillation: float = 0.25,
        start: float = 0.8,
        momentum: float = 0.966,
        head: dict[str, Any] | None = None,
        decoder_depth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """siglip: the wrapped model's config as a dict; vocabulary: entries of the tokenizer. Weights, start, momentum
        and head are as in `SigLIP2Loss`; the decoder has the text tower's shape at half its depth by default.
        """
        self.siglip, self.vocabulary, self.decoder_depth = siglip, vocabulary, decoder_depth
        self.sigmoid, self.caption, self.distillation = sigmoid, caption, distillation
        self.start, self.momentum, self.head = start, momentum, head
        super().__init__(**kwargs)


@dataclass
class PreTrainingOutput(ModelOutput):
    """The weighted sum, and each term that has begun."""

    loss: Tensor | None = None
    loss_sigmoid: Tensor | None = None
    loss_caption: Tensor | None = None
    loss_local_to_global: Tensor | None = None
    loss_masked_patches: Tensor | None = None


class SiglipForPreTraining(PreTrainedModel):
    """A SiglipModel (or Siglip2Model, on square images) with decoder, heads and teacher; `forward` gives the loss.

    Train it with `PreTrainingCollator` and `PreTrainingCallback`; `export` writes the trained model as a plain folder.
    """

    config_class = SiglipForPreTrainingConfig
    main_input_name = "image"
    accepts_loss_kwargs = False  # the loss is a mean already: Trainer shall not divide by a number of tokens
    _no_split_modules: list[str] = []  # noqa: RUF012 - the library's own declaration

    def __init__(self, config: SiglipForPreTrainingConfig, host: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        assert config.siglip is not None, "use SiglipForPreTraining.wrap(model, pipeline)"
        if host is None:
            settings = dict(config.siglip)
            host = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
        networks = _architecture(config)
        terms = siglip2_terms(
            networks.vision.width,
            HeadShape(**(config.head or {})),
            sigmoid=config.sigmoid,
            caption=config.caption,
            distillation=config.distillation,
            start=config.start,
            momentum=config.momentum,
        )
        self.learner = Learner(Model(host, networks, config.vocabulary), terms)
        self.progress: float | None = None
        self.notes: Notes = {}
        self.terms: dict[str, float] = {}  # of the last step, for the log
        self.post_init()

    @classmethod
    def wrap(cls, host: PreTrainedModel, pipeline: TextPipeline, **settings: Any) -> "SiglipForPreTraining":
        """Wrap an existing model and keep its weights; `settings` are those of `SiglipForPreTrainingConfig`."""
        if not isinstance(host, SiglipModel | Siglip2Model):
            raise TypeError(f"SiglipForPreTraining wraps a SiglipModel or Siglip2Model, not {type(host).__name__}.")
        if not host.logit_scale.any() and not host.logit_bias.any():
            warnings.warn("logit_scale and logit_bias are 0; SigLIP's start at log 10 and -10.", stacklevel=2)
        config = SiglipForPreTrainingConfig(siglip=host.config.to_dict(), vocabulary=len(pipeline), **settings)
        return cls(config, host)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Does nothing: each part initialises itself as in its paper."""

    def set_progress(self, progress: float, *, begins: bool = True) -> None:
        """Set the fraction of training done before a step. Terms that begin here start with a new teacher."""
        before = self.learner.active if self.progress is not None else set()
        # Not frozen: Trainer builds its optimizer from the parameters that are trainable at the start.
        new = self.learner.activate(progress, freeze=False) - before
        self.progress = progress
        if begins and new:
            self.learner.start_teachers(new)

    def after_step(self) -> None:
        """Update teacher and centres after the optimizer's step."""
        assert self.progress is not None
        self.learner.after_step(average(self.notes), self.progress)

    def forward(self, return_loss: bool = True, **batch: Tensor) -> PreTrainingOutput:
        """The loss of a batch from `PreTrainingCollator`.

        Raises RuntimeError in training without `PreTrainingCallback`, which sets the progress, and
        FloatingPointError on a term that is not finite, which Trainer would log as 0.
        """
        if self.training and self.progress is None:
            raise RuntimeError("training without PreTrainingCallback: add callbacks=[PreTrainingCallback(collator)].")
        if self.progress is None:
            self.learner.active = {o.name for o in self.learner.terms() if o.teacher is None}
        moved = to_device(batch, self.device)
        live = denominators(self.learner, [moved]).to(self.device, torch.float32)
        losses, self.notes = self.learner(moved, live)
        if self.training:
            numbers = {name: float(loss.detach()) for name, loss in losses.items()}
            if not all(map(_finite, numbers.values())):
                raise FloatingPointError(f"a term is not finite: {numbers}; lower the learning rate.")
            self.terms = {f"loss_{name}": value for name, value in numbers.items() if name != "loss"}
        return PreTrainingOutput(**{name if name == "loss" else f"loss_{name}": loss for name, loss in losses.items()})

    def export(self, folder: str | Path) -> None:
        """Write the trained model as a plain transformers folder with the decoder, without teacher and heads."""
        self.learner.model.save_pretrained(folder)


class PreTrainingCallback(TrainerCallback):
    """Sets the model's training progress, and updates teacher and centres after each optimizer step."""

    def __init__(self, collator: PreTrainingCollator) -> None:
        self.collator = collator

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        model: SiglipForPreTraining = given["model"]
        if args.gradient_accumulation_steps > 1 and model.config.sigmoid:
            raise ValueError(
                "gradient_accumulation_steps > 1 would compare images with the texts of one micro-batch only; use a "
                "larger per-device batch, or `opensiglip train --accumulate`, which is exact."
            )
        if args.remove_unused_columns:
            raise ValueError("set remove_unused_columns=False: Trainer would drop the images before the collator.")
        wrong = decayed_by_mistake(model, given.get("optimizer"))
        if wrong:
            warnings.warn(
                f"weight decay applies to {wrong[0]} and {len(wrong) - 1} more that SigLIP does not decay; give "
                "Trainer optimizers=(opensiglip.optim.adamw(model, learning_rate, weight_decay), None).",
                stacklevel=2,
            )
        if state.global_step:  # resumed: terms that the last step had started must not start again
            model.set_progress((state.global_step - 1) / state.max_steps, begins=False)
        # The batch at hand, the one Accelerate fetches beforehand, and what the processes have in store.
        ahead = 2 + (1 + args.dataloader_num_workers) * (args.dataloader_prefetch_factor or 2)
        self.collator.ahead = ahead / max(1, state.max_steps)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        progress = state.global_step / state.max_steps
        given["model"].set_progress(progress)
        self.collator.progress.fill_(progress)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        given["model"].after_step()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if "loss" in (given.get("logs") or {}):
            given["logs"].update(given["model"].terms)
            state.log_history[-1].update(given["model"].terms)


def decayed_by_mistake(model: torch.nn.Module, optimizer: Any) -> list[str]:
    """Names of the parameters that an optimizer decays and big_vision does not: embeddings, probe, temperature, ..."""
    groups = getattr(optimizer, "param_groups", [])
    decayed = {id(p) for group in groups if group.get("weight_decay") for p in group["params"]}
    right = matrices(model)
    return [name for name, p in model.named_parameters() if id(p) in decayed and name not in right]


def _finite(value: float) -> bool:
    return value - value == 0


def _architecture(config: SiglipForPreTrainingConfig) -> Architecture:
    settings = dict(config.siglip or {})
    vision, text = (dict(settings[f"{part}_config"]) for part in ("vision", "text"))

    def shape(part: dict[str, Any], depth: int | None = None) -> Shape:
        layers = int(part["num_hidden_layers"]) if depth is None else depth
        return Shape(int(part["hidden_size"]), layers, int(part["intermediate_size"]), int(part["num_attention_heads"]))

    patch = int(vision["patch_size"])
    side = int(vision.get("image_size") or patch * round(vision["num_patches"] ** 0.5))
    depth = config.decoder_depth or max(1, int(text["num_hidden_layers"]) // 2)
    decoder = shape(text, depth) if config.caption else None
    return Architecture(side, patch, int(text["max_position_embeddings"]), shape(vision), shape(text), decoder)
