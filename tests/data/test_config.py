from __future__ import annotations

import pytest

from d2ls_fast.config import load_settings
from d2ls_fast.data.config import DataSettings
from d2ls_fast.errors import UserError


def test_a_recipe_reads_from_yaml(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        """
root: imagery
train: lists/train.txt
val: ["b/images/*.tif", "c/images/*.tif"]
classes:
  - {name: clear, colour: "#0A141E", value: 128}
  - {name: cloud, colour: [1, 2, 3], value: [192, 255]}
ignore_values: [0]
bands: [4, 3, 2]
scales: {"tile7/*": 0.35}
"""
    )
    settings = load_settings(DataSettings, tmp_path / "recipe.yaml", ["scale=0.5"])
    assert settings.train == ["lists/train.txt"] and settings.scale == 0.5
    assert settings.colours == [(10, 20, 30), (1, 2, 3)] and settings.classes[1].value == [192, 255]


def test_palette_gives_names_colours_and_ignored_colours(settings):
    chosen = settings(palette="isprs", classes=[])
    assert (
        chosen.class_names[4] == "car" and chosen.colours[4] == (255, 255, 0) and chosen.ignored_colours == [(0, 0, 0)]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": {"by": "spatial"}, "train": ["*"]}, "not both"),
        ({"train": None}, "give train and val"),
        ({"train": None, "val": ["*"]}, "without train"),
        ({"split": {"val": 0.6, "test": 0.4}}, "training images remain"),
        ({"split": {"by": "magic"}}, "spatial"),
        ({"classes": []}, "give classes"),
        ({"palette": "isprs"}, "not both"),
        ({"palette": "mars", "classes": []}, "no palette 'mars'; there are loveda"),
        ({"mean": [1.0]}, "mean and std belong together"),
        ({"mean": [1.0], "std": [1.0, 2.0]}, "mean has 1 values, std 2"),
        ({"mean": [1.0], "std": [1.0], "bands": [1, 2]}, "mean has 1 values for 2 bands"),
        ({"mean": [1.0], "std": [1.0], "normalisation": "half"}, "either normalisation or mean"),
        ({"std": [0.0], "mean": [0.0]}, "greater than 0"),
        ({"bands": [0, 1]}, "greater than or equal to 1"),
        ({"scale": 0}, "greater than 0"),
        ({"masks": "colour"}, "a colour for every class"),
        ({"classes": [{"name": "a"}, {"name": "a"}]}, "same name"),
        ({"classes": [{"name": "a", "value": 1}, {"name": "b"}]}, "some have none"),
        ({"classes": [{"name": "a", "value": 1}, {"name": "b", "value": [2, 1]}]}, "value is declared twice"),
        ({"classes": [{"name": "a", "value": 1}], "ignore_values": [1]}, "value is declared twice"),
        ({"classes": [{"name": "a", "colour": "#000000"}], "ignore_colours": ["000000"]}, "colour is declared twice"),
        ({"classes": [{"name": "a", "colour": None}]}, "in quotes"),
        ({"classes": [{"name": "a", "colour": 841029}]}, "in quotes"),
        ({"classes": [{"name": "a", "colour": "red"}]}, "in quotes"),
        ({"classes": [{"name": "a", "colour": [0, 0, 256]}]}, "less than or equal to 255"),
        ({"image_foldr": "x"}, "did you mean 'image_folder'"),
    ],
)
def test_contradictions_are_named(settings, changes, message):
    with pytest.raises(UserError, match=message):
        settings(**changes)
