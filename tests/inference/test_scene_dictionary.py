"""One dictionary over many windows is the dictionary of the whole scene."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from d2ls_fast.errors import UserError
from d2ls_fast.inference.features import FeatureStore, Kept
from d2ls_fast.inference.mosaic import Layers
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.inference.products import Wanted
from d2ls_fast.inference.products.rows import MapRows
from d2ls_fast.inference.scene import map_scene
from d2ls_fast.inference.share import Share
from d2ls_fast.inference.sources import ArraySource
from d2ls_fast.models.checkpoint import ModelCard
from d2ls_fast.models.head import D2LSHead
from d2ls_fast.models.model import D2LS


class OwnCells(nn.Module):
    """Four maps, each cell of which sees nothing but its own pixels."""

    in_chans = 3

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(3, 8, stride, stride) for stride in (4, 8, 16, 32))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [convolution(images).tanh() for convolution in self.maps]


Make = Callable[..., D2LS]


@pytest.fixture
def make_model() -> Make:
    """``make_model(**head_options)``: no pixel sees anything outside its own 32 x 32 cell before the dictionary."""

    def make(**options: Any) -> D2LS:
        torch.manual_seed(3)
        model = D2LS(OwnCells(), D2LSHead([8] * 4, 4, embed_dim=32, num_heads=2, **options), {}).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            for convolution in model.backbone.maps:
                convolution.weight *= 3
            # The neck's upsampling would look across a window's edge. Only through the dictionary are these seen now.
            for projection in model.head.neck.projections[1:]:  # type: ignore[index]
                projection.weight.zero_()  # type: ignore[union-attr,operator]
            # Strong looks, so that which cells the dictionary sees matters.
            for attention in model.head.interaction.looks:
                attention.q_proj.weight *= 8
            model.head.classifier.hypernetwork[2].weight *= 100  # type: ignore[operator]
        return model

    return make


def whole(model: D2LS, card: ModelCard, image: np.ndarray) -> Tensor:
    """Class probabilities of the image, predicted at once."""
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (card.mean, card.std))
    with torch.no_grad():
        logits: Tensor = model((torch.from_numpy(image.astype(np.float32)) - mean)[None] / std)
    return logits[0].softmax(0)


def mapped(predictor: Predictor, image: np.ndarray, known: Any = None) -> MapRows:
    parts = list(predictor.rows(ArraySource(image, known), Layers(confidence=True)))
    return MapRows(0, *(np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "confidence")))


def check_same(result: MapRows, expected: Tensor, area: Any = np.s_[:, :]) -> None:
    best, labels = expected.max(0)
    confidence = result.confidence
    assert confidence is not None
    np.testing.assert_allclose(confidence[area], best.numpy()[area], atol=1e-5)
    clear = (expected.topk(2, dim=0).values.diff(dim=0)[0].abs() > 1e-4).numpy()[area]
    assert clear.mean() > 0.99
    assert np.array_equal(result.labels[area][clear], labels.numpy()[area][clear])
    assert len(np.unique(result.labels[area])) > 1


SETTINGS: list[tuple[int, int, str, dict[str, Any]]] = [
    (64, 32, "cosine", {"stages": 2}),
    (32, 0, "none", {"stages": 1}),
    (96, 40, "gaussian", {"stages": 3}),
    (64, 0, "cosine", {"stages": 2, "alternating": False}),
    (128, 64, "cosine", {"stages": 1, "dynamic": False, "prototypes": 2}),
]


@pytest.mark.parametrize(("window", "overlap", "blend", "options"), SETTINGS)
def test_many_windows_give_what_the_whole_scene_gives(
    window: int, overlap: int, blend: Any, options: Any, make_model: Make, card: ModelCard, make_image: Any
) -> None:
    model, image = make_model(**options), make_image(150, 203)
    predictor = Predictor(
        (model, card), "cpu", window=window, overlap=overlap, blend=blend, batch=3, dictionary="scene"
    )
    expected = whole(model, card, image)
    check_same(mapped(predictor, image), expected)
    # The windows' own dictionaries are something else: the comparison above is no empty one.
    apart = Predictor((model, card), "cpu", window=window, overlap=overlap, blend=blend)
    assert np.abs(mapped(apart, image).confidence - expected.amax(0).numpy()).max() > 1e-3  # type: ignore[operator]


def seeing_across(model: D2LS) -> D2LS:
    """``model`` with a neck that mixes the deeper maps in, up to a cell of stride 32 away."""
    with torch.no_grad():
        for projection in model.head.neck.projections[1:]:  # type: ignore[index]
            projection.weight.normal_()  # type: ignore[union-attr,operator]
    return model


def test_overlaps_shield_from_what_edges_do(make_model: Make, card: ModelCard, make_image: Any) -> None:
    model, image = seeing_across(make_model(stages=2)), make_image(150, 203)
    predictor = Predictor((model, card), "cpu", window=96, overlap=64, blend="none", dictionary="scene")
    check_same(mapped(predictor, image), whole(model, card, image))


def test_a_scene_in_one_window_is_predicted_as_ever(make_model: Make, card: ModelCard, make_image: Any) -> None:
    model, image = seeing_across(make_model(stages=2)), make_image(70, 90)
    as_trained = Predictor((model, card), "cpu").predict(image)
    labels = Predictor((model, card), "cpu", dictionary="scene").predict(image)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (card.mean, card.std))
    at_once = model.predict((torch.from_numpy(image.astype(np.float32)) - mean)[None] / std)
    assert np.array_equal(labels, as_trained)
    assert np.array_equal(labels, at_once[0].numpy())


@pytest.mark.parametrize("scale", [0.6, 1.7])
def test_scaled_scenes_with_missing_pixels_do_not_depend_on_the_windows(
    scale: float, make_model: Make, card: ModelCard, make_image: Any
) -> None:
    model, image = make_model(stages=2), make_image(130, 141)
    card = replace(card, scale=scale)
    known = np.ones((130, 141), bool)
    known[40:90, 30:] = False
    results = [
        mapped(Predictor((model, card), "cpu", window=window, overlap=20, dictionary="scene"), image, known)
        for window in (64, 512)
    ]
    assert ((results[0].labels == 255) == ~known).all()
    np.testing.assert_allclose(results[0].confidence, results[1].confidence, atol=1e-5)  # type: ignore[arg-type]


def test_cells_without_data_take_no_part(make_model: Make, card: ModelCard, make_image: Any) -> None:
    model, image = make_model(stages=2), make_image(128, 128)
    known = np.zeros((128, 128), bool)
    known[:70, :100] = True  # ends inside a cell of stride 32 both ways, and of stride 4 below
    predictor = Predictor((model, card), "cpu", window=64, overlap=32, dictionary="scene")
    got = mapped(predictor, image, known)
    mean, std = (np.array(each, np.float32).reshape(-1, 1, 1) for each in (card.mean, card.std))
    pixels = torch.from_numpy(np.where(known, (image.astype(np.float32) - mean) / std, 0))[None]
    cells, coarse_cells = (torch.from_numpy(_any_in(known, side)).flatten() for side in (4, 32))
    head = model.head
    with torch.no_grad():
        maps = model.backbone(pixels)
        tokens, positions = head.neck(maps)[:, cells], head.positions(32, 32)[cells]
        initial = head.dictionary.dynamic(maps[-1].flatten(2)[..., coarse_cells][..., None])
        dictionary, refined = head.interaction(tokens, positions, initial)
        blocks = head.classifier(refined, dictionary, (1, int(cells.sum()))).softmax(1)[0]  # [K, 4, 4 n]
    expected = torch.zeros(4, 128, 128).unflatten(2, (32, 4)).unflatten(1, (32, 4)).permute(0, 1, 3, 2, 4).flatten(1, 2)
    expected[:, cells] = blocks.unflatten(2, (-1, 4)).transpose(1, 2)
    check_same(got, expected.unflatten(1, (32, 32)).permute(0, 1, 3, 2, 4).reshape(4, 128, 128), np.s_[:70, :100])


def _any_in(known: np.ndarray, side: int) -> np.ndarray:
    blocks: np.ndarray = known.reshape(128 // side, side, 128 // side, side).any(axis=(1, 3))
    return blocks


def test_a_scene_without_data_has_no_dictionary(make_model: Make, card: ModelCard, make_image: Any) -> None:
    predictor = Predictor((make_model(stages=1), card), "cpu", window=64, overlap=0, dictionary="scene")
    assert (mapped(predictor, make_image(70, 70), np.zeros((70, 70), bool)).labels == 255).all()


@pytest.mark.parametrize(
    ("dtype", "alternating"), [(torch.float32, True), (torch.bfloat16, True), (torch.float32, False)]
)
def test_where_pixels_are_kept_changes_no_bit(
    dtype: torch.dtype, alternating: bool, make_model: Make, card: ModelCard, make_image: Any
) -> None:
    model, image = make_model(stages=2, alternating=alternating), make_image(100, 170)
    known = np.ones((100, 170), bool)
    known[:70, 50:140] = False
    results = []
    for features in ("memory", "disk", "recompute"):
        predictor = Predictor(
            (model, card),
            "cpu",
            dtype,
            window=64,
            overlap=32,
            dictionary="scene",
            features=features,  # type: ignore[arg-type]
        )
        results.append(mapped(predictor, image, known))
    for result in results[1:]:
        assert np.array_equal(result.labels, results[0].labels)
        assert np.array_equal(result.confidence, results[0].confidence, equal_nan=True)  # type: ignore[arg-type]


def test_what_fits_where_decides_where_pixels_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.arange(64, dtype=torch.float32).view(1, 8, 8)  # 256 bytes
    chosen = []
    for windows, free in ((4, 10**9), (5, 10**9), (5, 2559), (5, 2560)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        store = FeatureStore("auto", windows, 1024, tmp_path / "features")
        store.put((0, 1), Kept(pixels, 2))
        chosen.append(store.features)
        if (0, 1) in store:
            kept = store.get((0, 1))
            assert kept.updates == 2
            assert torch.equal(kept.pixels, pixels)
        store.close()
    assert chosen == ["memory", "disk", "recompute", "disk"]
    assert not (tmp_path / "features").exists()


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = FeatureStore("disk", 1, 0, tmp_path / "file" / "features")
    with pytest.raises(UserError, match=r"file/features: cannot be written \(.*\); choose a writable folder"):
        store.put((0, 0), Kept(torch.zeros(1, 1, 1), 0))


class Pair(Share):
    """One of two threads that work together as two processes would."""

    def __init__(self, rank: int, outcomes: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "_exchange", (outcomes, barrier))

    def _all(self, outcome: Any) -> list[Any]:
        outcomes, barrier = self._exchange  # type: ignore[attr-defined]
        outcomes[self.rank] = outcome
        barrier.wait()
        both = list(outcomes)
        barrier.wait()
        return both


def test_two_processes_map_to_the_bytes_of_one(
    tmp_path: Path, make_model: Make, card: ModelCard, make_image: Any
) -> None:
    scene = write_picture(tmp_path / "scene.png", make_image(170, 100))
    predictor = Predictor((make_model(stages=2), card), "cpu", window=64, overlap=32, dictionary="scene")

    def mapping(folder: str, share: Share) -> None:
        map_scene(predictor, scene, tmp_path / folder, Wanted(probabilities=True, overlay=False), share=share)

    mapping("one", Share())
    outcomes, barrier = [None, None], threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(mapping, ["two", "two"], [Pair(rank, outcomes, barrier) for rank in range(2)]))
    one, two = ([path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("one", "two"))
    assert one == two
    assert len(one) == 2


def write_picture(path: Path, image: np.ndarray) -> Path:
    """``image`` of 0..1000 as an 8-bit RGB PNG."""
    Image.fromarray(np.moveaxis((image // 4).astype(np.uint8), 0, 2)).save(path)
    return path


@pytest.mark.parametrize("stop", [5, 20, 38, 50, 55])
def test_an_interrupted_map_goes_on_to_the_same_bytes(
    stop: int, tmp_path: Path, make_model: Make, card: ModelCard, make_image: Any
) -> None:
    scene = write_picture(tmp_path / "scene.png", make_image(130, 100))
    predictor = Predictor(
        (make_model(stages=2), card), "cpu", window=64, overlap=32, dictionary="scene", features="disk"
    )
    calls: list[tuple[int, int]] = []

    def interrupt(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == stop:
            raise KeyboardInterrupt

    map_scene(predictor, scene, tmp_path / "whole", Wanted(overlay=False))
    with pytest.raises(KeyboardInterrupt):
        map_scene(predictor, scene, tmp_path / "part", Wanted(overlay=False), progress=interrupt)
    partial = tmp_path / "part" / ".scene.partial"
    assert not list(partial.glob("features*"))
    assert calls[0][1] == 12 * 5  # three looks, the pooling and the classification of 4 x 3 windows
    assert [done for done, _ in calls] == list(range(1, stop + 1))
    found = stop > 12
    assert (partial / "dictionaries.safetensors").exists() == found
    again: list[tuple[int, int]] = []
    map_scene(
        predictor,
        scene,
        tmp_path / "part",
        Wanted(overlay=False),
        progress=lambda *counts: again.append(counts),
    )
    assert again[-1][0] == again[-1][1] <= 60 - (stop - 1) // 12 * 12
    names = [path.name for path in sorted((tmp_path / "whole").iterdir())]
    assert names == [path.name for path in sorted((tmp_path / "part").iterdir())]
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tta": "flips"}, "dictionary scene: not possible with tta flips; take tta none, or dictionary window"),
    ({"window": 100}, "window 100 must be a multiple of 32 with dictionary scene; take 96 or 128"),
    (
        {"window": 64, "overlap": 40},
        "overlap 40 is rounded up .* window of 64 pixels; take at most 32",
    ),
    ({"dictionary": "image"}, "dictionary 'image': no such setting; take window, scene"),
    ({"features": "tape"}, "features 'tape': no such setting; take auto, memory, disk, recompute"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_is_refused(options: Any, message: str, make_model: Make, card: ModelCard) -> None:
    with pytest.raises(UserError, match=message):
        Predictor((make_model(stages=1), card), "cpu", **{"dictionary": "scene"} | options)


def test_a_model_without_a_dictionary_is_refused(pixel_model: Any, card: ModelCard) -> None:
    with pytest.raises(UserError, match=r"dictionary scene: PixelModel has no dictionary; take a D2LS model"):
        Predictor((pixel_model, card), "cpu", dictionary="scene")
