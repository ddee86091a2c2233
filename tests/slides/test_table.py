"""slides.csv: what is read, and one line for everything that is wrong."""

import numpy as np
import pytest

from stedm.errors import StedmError
from stedm.slides.table import read_slides

HEADER = "slide_id,patient_id,split,image,annotation,mpp,category\n"


@pytest.fixture
def table(tmp_path):
    """Function: text of a slides.csv to its path."""

    def write(text: str):
        (tmp_path / "slides.csv").write_text(text, encoding="utf-8")
        return tmp_path / "slides.csv"

    return write


def test_texts_stay_texts_and_names_become_absolute(table, tmp_path):
    slides = read_slides(table(HEADER + "007,01,train,a/b.svs,c.geojson,0.25,3\n8, 02 ,unlabeled,/x/y.svs,,,\n"))
    assert slides["slide_id"].tolist() == ["007", "8"]
    assert slides["patient_id"].tolist() == ["01", "02"]
    assert slides["image"].tolist() == [str(tmp_path / "a" / "b.svs"), "/x/y.svs"]
    assert slides["annotation"].tolist() == [str(tmp_path / "c.geojson"), ""]
    assert slides["mpp"][0] == 0.25
    assert np.isnan(slides["mpp"][1])


def test_optional_columns_may_be_absent_and_others_are_kept(table):
    slides = read_slides(table("slide_id,patient_id,split,image,scanner\ns,p,test,a.svs,GT450\n"))
    assert slides["annotation"].tolist() == [""]
    assert slides["scanner"].tolist() == ["GT450"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "no rows"),
        ("s,p,train,a.svs,,,\ns,p,train,b.svs,,,\n", "slide s: is in several rows"),
        ("s,p,train,a.svs,,,\nt,p,test,b.svs,,,\n", "patient p is in several splits (test, train)"),
        ("s,p,training,a.svs,,,\n", "unknown split 'training'"),
        ("s,,train,a.svs,,,\n", "row 1 has no patient_id"),
        (",p,train,a.svs,,,\n", "row 1 has no slide_id"),
        ("s,p,train,,,,\n", "row 1 has no image"),
        ("s,p,train,a.svs,,fast,\n", "mpp 'fast' is not a positive number"),
        ("s,p,train,a.svs,,-1,\n", "mpp '-1' is not a positive number"),
        ("s,p,train,a.svs,,40,\n", "mpp 40 is no slide's; give microns per pixel (0.25 at 40x), no magnification"),
        ("s,p,train,a.svs,,0.00025,\n", "mpp 0.00025 is no slide's"),
        ("s,p,train,a.svs,,nan,\n", "mpp 'nan' is not a positive number"),
        ("a/b,p,train,a.svs,,,\n", "slide a/b: the name becomes a folder's"),
        ("a;b,p,train,a.svs,,,\n", "slide a;b: the name becomes a folder's"),
        ("..,p,train,a.svs,,,\n", "slide ..: the name becomes a folder's"),
        ("s,p,train,a.svs,,,\nt,q,test,./a.svs,,,\n", "is the image of two slides"),
        ("s,p,train,a.svs,,,,,,,extra\n", "not readable"),
    ],
)
def test_problems(table, rows, message):
    with pytest.raises(StedmError) as problem:
        read_slides(table(HEADER + rows))
    assert message in str(problem.value)
    assert "slides.csv" in str(problem.value)
    assert len(str(problem.value).splitlines()) == 1


def test_all_problems_are_told_at_once(table):
    with pytest.raises(StedmError) as problem:
        read_slides(table(HEADER + "s,p,train,a.svs,,x,\ns,,nowhere,,,,\n"))
    assert len(str(problem.value).splitlines()) == 5


def test_missing_columns_and_files(table, tmp_path):
    with pytest.raises(StedmError, match="column patient_id is missing"):
        read_slides(table("slide_id,split,image\na,train,b\n"))
    with pytest.raises(StedmError, match="no such table"):
        read_slides(tmp_path / "none.csv")
