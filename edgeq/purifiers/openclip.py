"""Two towers of the package open_clip, frozen, in float32, from a local file.

A model is described by its config, as open_clip keeps it for each of its names, so a run folder can build it again.
Towers are open_clip's `CLIP` with a `VisionTransformer`: ViT-B-32 and its kin, not ResNets, timm's networks, or texts
read by a network of transformers. OpenAI's weights were trained with QuickGELU: x sigmoid(1.702 x). No file says so,
and without it they name images worse, in silence; names that end in -quickgelu, or `quick_gelu`, ask for it.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from edgeq.errors import InputError, require
from edgeq.files import read_json
from edgeq.purifiers.towers import AbstractTowers

PARTS = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale")
FOREIGN = ("timm_model_name", "hf_model_name", "attentional_pool", "embed_cls", "multimodal_cfg", "no_causal_mask")


@dataclass(frozen=True)
class OpenClip:
    """One model of open_clip.

    Attributes:
        settings: Its config, as JSON.
    """

    kind: ClassVar[str] = "openclip"
    settings: str

    @staticmethod
    def of(name: str, *, quick_gelu: bool = False) -> "OpenClip":
        """Return the description of a model.

        Args:
            name: One that open_clip knows, or a JSON file with a config (open_clip_config.json, too).
            quick_gelu: Activations as in OpenAI's models.
        """
        if name.endswith(".json"):
            config = read_json(name)
            config = config.get("model_cfg", config) if isinstance(config, dict) else {}
        else:
            config = _package().get_model_config(name.replace("/", "-"))
            if config is None:
                raise InputError(f"expected a model that open_clip knows, got {name!r}; see open_clip.list_models()")
        odd = [key for key in FOREIGN if key in config or any(_part(config, p).get(key) for p in PARTS[1:3])]
        layers = _part(config, "vision_cfg").get("layers", 12)
        odd += (
            [] if _part(config, "text_cfg").get("pool_type", "argmax") == "argmax" else ["another pool_type of texts"]
        )
        if odd or config.get("custom_text") or not isinstance(layers, int) or not set(PARTS[:3]) <= config.keys():
            what = odd[0] if odd else "another tower"
            raise InputError(
                f"expected a CLIP of open_clip with a vision transformer, got {name!r} with {what}; use one as ViT-B-32"
            )
        kept = {key: config[key] for key in PARTS if key in config}
        kept["quick_gelu"] = bool(quick_gelu or kept.get("quick_gelu", False))
        return OpenClip(json.dumps(kept, sort_keys=True))

    def path(self, start: str | os.PathLike[str]) -> Path:
        """Return the file of the weights."""
        return Path(start)

    def towers(self, image_shape: tuple[int, int, int]) -> "OpenClipTowers":
        """Return the model with new weights; images of any size are resized to its own."""
        return OpenClipTowers(_model(self.settings))

    def read(self, start: str | os.PathLike[str]) -> dict[str, Tensor]:
        """Return the weights that lie in a file: safetensors, or what torch.load reads without running code."""
        if not Path(start).is_file():
            raise InputError(
                f"expected a file of open_clip's weights, got {start}, which is none; name it with --start"
            )
        model = _model(self.settings)
        try:
            _package("factory").load_checkpoint(model, str(start), weights_only=True)
        except Exception as error:  # unpickling and foreign state dicts fail in many ways
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"expected weights of this model of open_clip in {start}, got '{reason}'") from error
        return OpenClipTowers(model).state_dict()


class OpenClipTowers(AbstractTowers):
    """A model of open_clip.

    Args:
        model: Its `CLIP`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model.float().eval()
        visual = self.model.visual
        self.size, self.grid = tuple(visual.image_size), tuple(visual.grid_size)
        self.dim, self.width = visual.output_dim, self.model.token_embedding.embedding_dim
        self.context = self.model.context_length
        constants = _package("constants")
        for name, numbers in (("mean", constants.OPENAI_DATASET_MEAN), ("std", constants.OPENAI_DATASET_STD)):
            self.register_buffer(name, torch.tensor(numbers).view(1, 3, 1, 1), persistent=False)

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What multiplies cosines."""
        return self.model.logit_scale.exp().reshape(())

    def see(self, images: Shaped[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d gh gw"]]:
        """Return the class feature and the grid features, both behind the last norm and the projection."""
        visual, x = self.model.visual, images / 255.0 if images.dtype == torch.uint8 else images
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, size=self.size, mode="bicubic", antialias=True, align_corners=False)
        x = (x - self.get_buffer("mean")) / self.get_buffer("std")
        seen, grid = visual._pool(visual.transformer(visual._embeds(x)))
        if visual.final_ln_after_pool:
            grid = visual.ln_post(grid)
        return seen @ visual.proj, (grid @ visual.proj).transpose(1, 2).unflatten(2, self.grid)

    def tokens(self, texts: list[str]) -> Int64[Tensor, "n context"]:
        """Return the tokens of CLIP's own vocabulary."""
        return _package("tokenizer").SimpleTokenizer(context_length=self.context)(texts)

    def embed(self, tokens: Int64[Tensor, "n tokens"]) -> Float[Tensor, "n tokens width"]:
        """Return tokens as vectors."""
        return self.model.token_embedding(tokens)

    def read(self, embedded: Float[Tensor, "n tokens width"], ends: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Return the features of embedded texts."""
        model, length = self.model, int(ends.max()) + 1
        x = embedded[:, :length] + model.positional_embedding[:length]
        mask = None if model.attn_mask is None else model.attn_mask[:length, :length]
        x = model.ln_final(model.transformer(x, attn_mask=mask))
        x = x[torch.arange(len(x), device=x.device), ends]
        project = model.text_projection
        return project(x) if isinstance(project, nn.Linear) else x @ project


def _part(config: dict[str, Any], name: str) -> dict[str, Any]:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _package(part: str = "") -> Any:
    require("open_clip", "openclip")
    return require(f"open_clip.{part}" if part else "open_clip", "openclip")


def _model(settings: str) -> nn.Module:
    config = json.loads(settings)
    try:
        return _package().CLIP(**config)
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"expected a config that open_clip can build, got '{error}'; correct it") from error
