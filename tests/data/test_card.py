"""Cards: front matter of the hub, licences in a data set's own words, sections that later stages fill."""

import pytest
from huggingface_hub import DatasetCard, ModelCard

from stedm.data.card import dataset_card, fill_section, licence_keys, model_card, section_to_fill
from stedm.errors import StedmError

SAID = {"name": "EBHI-Seg (64 px)", "licence": "CC0-1.0", "citation": "Shi et al. 2023"}
UNSAID = {"name": "mine", "licence": "", "citation": ""}


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("CC BY 4.0", {"license": "cc-by-4.0"}),
        ("cc-by-nc-sa-4.0", {"license": "cc-by-nc-sa-4.0"}),
        ("CC0-1.0", {"license": "cc0-1.0"}),
        ("CC-0 1.0", {"license": "cc0-1.0"}),
        ("Creative Commons BY 4.0", {"license": "cc-by-4.0"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("research use only", {"license": "other", "license_name": "research-use-only"}),
        (" ", {"license": "unknown"}),
    ],
)
def test_licences_become_those_of_the_hub_or_keep_their_name(words, keys):
    assert licence_keys(words) == keys


def test_what_the_data_set_does_not_say_is_said_to_be_missing():
    card = model_card("T", "about", {"Use": "so"}, UNSAID, pipeline_tag="image-to-image", tags=[])
    assert ModelCard(card).data.license == "unknown"
    for missing, key in (("says nothing about its licence", "license"), ("names nothing to cite", "citation")):
        assert missing in card
        assert f"dataset.yaml of the data set (`{key}:`)" in card


def test_front_matter_is_read_by_the_hubs_own_reader():
    model = ModelCard(model_card("T", "about", {}, SAID, pipeline_tag="image-segmentation", tags=["x"]))
    assert (model.data.library_name, model.data.pipeline_tag) == ("stedm", "image-segmentation")
    assert (model.data.license, model.data.datasets) == ("cc0-1.0", ["ebhi-seg-64-px"])
    made = DatasetCard(dataset_card("T", "about", {}, SAID, n_images=1024))
    assert (made.data.size_categories, made.data.task_categories) == (["1K<n<10K"], ["image-segmentation"])
    assert made.data.source_datasets == ["extended|other-ebhi-seg-64-px"]
    other = model_card("T", "about", {}, SAID | {"name": "owner/name"}, pipeline_tag="image-to-image", tags=[])
    assert ModelCard(other).data.datasets == ["owner/name"]


def test_a_section_is_filled_and_nothing_else(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(f"before\n{section_to_fill('quality', 'nothing yet')}\nafter\n")
    text = r"a \1 $ b"
    assert fill_section(tmp_path, "quality", text)
    assert card.read_text() == f"before\n{section_to_fill('quality', text)}\nafter\n"
    written = card.stat().st_mtime_ns
    assert fill_section(tmp_path, "quality", text)
    assert card.stat().st_mtime_ns == written
    assert not fill_section(tmp_path, "scores", "x")
    assert not fill_section(tmp_path / "none", "quality", "x")
    card.write_bytes(b"\xff\xfe")
    with pytest.raises(StedmError, match=r"README.md: not readable"):
        fill_section(tmp_path, "quality", "x")
