"""What `model_index.json` of a model folder says."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stedm.errors import StedmError
from stedm.io.artefacts import read_json

LARGEST_IMAGE_PX = 1 << 14


class ModelIndex(BaseModel):
    """A model's settings beside those of its networks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    class_name: Annotated[Literal["StyleDiffusion"], Field(alias="_class_name")]
    version: Annotated[str, Field(alias="_stedm_version")] = ""
    objective: Literal["eps", "v", "flow"]
    style_sampling: Literal["none", "augmented", "nearby", "multi-patch", "cohort"] = "cohort"
    classes: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=255)]
    image_px: Annotated[int, Field(ge=1, le=LARGEST_IMAGE_PX)]
    own_codec: str | None = None
    provenance: dict[str, Any] = {}


def read_model_index(path: Path) -> ModelIndex:
    """Read it; `StedmError` with one line if it is of another kind of model, or damaged."""
    name = read_json(path, dict[str, Any], hint="give the model/ folder of a run").get("_class_name")
    if name != "StyleDiffusion":
        raise StedmError(f"{path}: this is a {name}, not a StyleDiffusion model; give the model/ folder of a run")
    return read_json(path, ModelIndex, hint="train the model again")
