"""The style bank: the style vectors of a cohort, embedded once, to look up and to interpolate.

Every vector of a bank is what the model's own style network makes of a set of images, so that each can be given to
`StyleDiffusion.generate(style_vectors=...)`: for an image of that one image, for a patient of all its images.
Distances are Euclidean: the LayerNorm at the encoder's end has brought the channels to one scale.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stedm.data.folder import DatasetFolder, rows_by_patient
from stedm.errors import StedmError
from stedm.io.artefacts import Column, read_parquet, write_parquet

if TYPE_CHECKING:
    import torch

    from stedm.diffusion.pipeline import StyleDiffusion

COLUMNS = ["image_file_name", "patient_id", "category"]
_SCHEMA = {**dict.fromkeys(COLUMNS, Column("text")), "vector": Column("vector")}
_EMBED_AGAIN = "remove it and run again"


@dataclass(frozen=True, eq=False)
class StyleBank:
    """Style vectors of images and patients, under one model.

    table: image_file_name, patient_id, category; row i belongs to `vectors[i]`, float32 `(n, style_dim)`.
    patients: ids, sorted; `patient_vectors` `(len(patients), style_dim)` in their order.
    """

    table: pd.DataFrame
    vectors: np.ndarray
    patients: list[str]
    patient_vectors: np.ndarray
    model_fingerprint: str

    @classmethod
    def embed(
        cls,
        model: "StyleDiffusion",
        dataset: DatasetFolder,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "StyleBank":
        """Embed the images of a dataset folder (or of a part of it, see `DatasetFolder.select`); no mask is read.

        A model whose aggregation takes few images sees that many of a patient, spread over the patient's rows.
        on_progress: called with (images done, images).
        """
        rows_of = rows_by_patient(dataset.table)
        patients, order = sorted(rows_of), []
        if not patients:
            raise StedmError(f"{dataset.root}: a style bank needs at least one image")
        vectors, patient_vectors = [], []
        for patient in patients:
            rows = rows_of[patient]
            encoded = model.encode_images([dataset.read_image(int(row), model.image_px) for row in rows])
            vectors.append(model.aggregate_encoded(encoded, [[i] for i in range(len(rows))]).cpu().numpy())
            most = min(len(rows), model.largest_style_set or len(rows))
            members = np.linspace(0, len(rows) - 1, most).round().astype(int).tolist()
            patient_vectors.append(model.aggregate_encoded(encoded, [members]).cpu().numpy())
            order.extend(rows.tolist())
            if on_progress:
                on_progress(len(order), len(dataset))
        table = dataset.table[COLUMNS].iloc[order].reset_index(drop=True)
        return cls(table, np.concatenate(vectors), patients, np.concatenate(patient_vectors), model.fingerprint)

    def save(self, path: str | Path) -> None:
        """Write one parquet file, atomically: the table and a column `vector`; a patient's row has no image_file_name.

        The file's `attrs` (pandas) name the model.
        """
        category = self.table.groupby("patient_id")["category"].first()
        of_patients = pd.DataFrame(
            {"image_file_name": "", "patient_id": self.patients, "category": category[self.patients].to_list()}
        )
        table = pd.concat([self.table, of_patients], ignore_index=True)
        table["vector"] = list(np.concatenate([self.vectors, self.patient_vectors]))
        table.attrs = {"model_fingerprint": self.model_fingerprint}
        write_parquet(table, path)

    @classmethod
    def load(cls, path: str | Path, model: "StyleDiffusion | None" = None) -> "StyleBank":
        """Read a bank; with `model`, refuse the bank of another one.

        Raises:
            StedmError: no such file, not a style bank, or another model's.
        """
        path = Path(path)
        if not path.is_file():
            raise StedmError(f"{path}: no such style bank; a run writes RUN/style_bank.parquet")
        read = read_parquet(path, _SCHEMA, what="a style bank", hint=_EMBED_AGAIN)
        if not isinstance(read.attrs.get("model_fingerprint"), str):
            raise StedmError(f"{path}: not a style bank (no model named); {_EMBED_AGAIN}")
        of_patient = (read["image_file_name"] == "").to_numpy()
        vectors = np.stack(read["vector"].to_list()).astype(np.float32)
        bank = cls(
            read.loc[~of_patient, COLUMNS].reset_index(drop=True),
            vectors[~of_patient],
            read.loc[of_patient, "patient_id"].to_list(),
            vectors[of_patient],
            read.attrs["model_fingerprint"],
        )
        if bank.patients != sorted(set(bank.table["patient_id"])) or bank.table["image_file_name"].duplicated().any():
            raise StedmError(f"{path}: its patients are not those of its images; {_EMBED_AGAIN}")
        if model is not None:
            bank.require(model, str(path))
        return bank

    def renamed(self, names_of: Callable[[Iterable[str]], list[str]]) -> "StyleBank":
        """The same bank with other ids of patients; `names_of` gives those of some ids, and keeps their order."""
        table = self.table.assign(patient_id=names_of(self.table["patient_id"]))
        return replace(self, table=table, patients=names_of(self.patients))

    def require(self, model: "StyleDiffusion", name: str = "style bank") -> None:
        """StedmError if the vectors are not of this model: those of two models can't be compared."""
        if model.fingerprint != self.model_fingerprint:
            raise StedmError(
                f"{name}: holds the styles of model {self.model_fingerprint}, not of {model.fingerprint}; embed again"
            )

    def patient_vector(self, patient: str) -> np.ndarray:
        """Style vector `(style_dim,)` of a patient: the model's aggregation of the patient's images."""
        if patient not in self.patients:
            raise StedmError(f"style bank: has no patient {patient}; `patients` lists those that it has")
        return self.patient_vectors[self.patients.index(patient)].copy()

    def nearest(
        self,
        query: "np.ndarray | torch.Tensor | Sequence[np.ndarray]",
        k: int = 5,
        *,
        model: "StyleDiffusion | None" = None,
    ) -> pd.DataFrame:
        """The `k` images whose styles are nearest to a style.

        Args:
            query: a style vector `(style_dim,)`; or style images, uint8 RGB `(h, w, 3)`, which `model` embeds
                together.

        Returns:
            image_file_name, patient_id, category and distance, nearest first.

        Raises:
            StedmError: images without a model or with another model, or a vector of another length.
        """
        if not isinstance(query, list | tuple) and np.ndim(query) == 1:
            vector = np.asarray(query, np.float32)
        elif model is None:
            raise StedmError("style bank: give the model that embeds the style images")
        else:
            self.require(model)
            vector = model.style_vectors([list(query)])[0].cpu().numpy()
        if vector.shape != self.vectors.shape[1:]:
            raise StedmError(f"style bank: vectors have length {self.vectors.shape[1]}, the query {len(vector)}")
        distances = _distances(self.vectors, vector)
        chosen = np.argsort(distances, kind="stable")[:k]
        return self.table.iloc[chosen].assign(distance=distances[chosen]).reset_index(drop=True)

    def farthest_pair(self) -> tuple[str, str]:
        """The two patients whose styles differ most."""
        distances = np.stack([_distances(self.patient_vectors, vector) for vector in self.patient_vectors])
        first = int(np.argmax(distances.max(axis=1)))
        return self.patients[first], self.patients[int(np.argmax(distances[first]))]

    def interpolate(self, patient_a: str, patient_b: str, n: int) -> np.ndarray:
        """Style vectors `(n, style_dim)` at even steps from one patient's to another's, ends included.

        Along a straight line, although the encoder's LayerNorm puts the vectors of single images near a sphere: the
        default aggregation averages them, so that the network was trained inside that sphere, and halfway between two
        patients with equally many images the line has exactly the style of all their images taken together. A
        spherical path would keep the length, which averages of unlike images don't have.
        """
        if n < 2:
            raise StedmError(f"style bank: an interpolation has at least its two ends, got n = {n}")
        a, b = self.patient_vector(patient_a), self.patient_vector(patient_b)
        weight = np.linspace(0.0, 1.0, n, dtype=np.float32)[:, None]
        return (1.0 - weight) * a + weight * b


def _distances(vectors: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors.astype(np.float64) - vector, axis=1)
